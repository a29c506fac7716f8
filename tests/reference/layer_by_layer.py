"""Reductions inside a decoder by transformers' own layers, run one by one on the rows that are left, wherever the image's tokens stand."""

import numpy as np
import torch

from reference import decoder_side


def through_layers(model, method, embeds, visual, left, recycle=0.3):
    """Logits of a prompt with an image, which tokens of it are left, and how many rows each layer's cache has.

    A method acts between a layer's attention and its MLP; PyramidDrop before the attention, by weights of all rows.

    Args:
        model: with weights shown, that is `attn_implementation="eager"`.
        method: fastv, pyramiddrop or sparsevlm.
        embeds: [S, C].
        visual: [N] rows where the image's tokens stand, ascending.
        left: layer → visual tokens that are left after it.
        recycle: of SparseVLM.

    Returns:
        Logits [V] after the last row, kept tokens [K], rows of each layer.
    """
    language = model.get_decoder()
    x, places = embeds.clone(), torch.arange(len(embeds))
    is_visual, is_prompt = np.zeros(len(x), bool), np.zeros(len(x), bool)
    is_visual[visual], is_prompt[visual[-1] + 1 :] = True, True
    raters = decoder_side.raters(embeds[is_visual].numpy(), embeds[is_prompt].numpy())
    kept, lengths = np.arange(len(visual)), []

    def attended(layer):
        """(rows after the attention [S, C], mean weights [S, S])"""
        causal = torch.full((len(x), len(x)), -torch.inf).triu(1)[None, None]
        rotary = language.rotary_emb(x[None], places[None])
        mixed, weights = layer.self_attn(
            layer.input_layernorm(x[None]), position_embeddings=rotary, attention_mask=causal
        )
        return x + mixed[0], weights[0].mean(0).numpy()

    with torch.no_grad():
        for number, layer in enumerate(language.layers):
            after, weights = attended(layer)
            before_attention = method == "pyramiddrop"
            if not before_attention:
                lengths.append(len(x))
            x = x if before_attention else after
            if (keep := left.get(number)) is not None:
                tokens, chosen = x[is_visual].numpy(), None
                if method == "sparsevlm":
                    of_text = weights[is_prompt][:, is_visual]
                    tokens, chosen = decoder_side.sparsevlm_layer(tokens, of_text, raters, keep, recycle)
                else:
                    chosen = np.sort(np.argsort(-weights[-1, is_visual], kind="stable")[:keep])
                    tokens = tokens[chosen]
                rows = np.flatnonzero(is_visual)
                x[rows[chosen]] = torch.from_numpy(np.asarray(tokens, np.float32))
                stays = ~is_visual
                stays[rows[chosen]] = True
                x, places = x[stays], places[stays]
                is_visual, is_prompt, kept = is_visual[stays], is_prompt[stays], kept[chosen]
            if before_attention:
                lengths.append(len(x))
                x, _ = attended(layer)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.lm_head(language.norm(x))[-1].numpy(), kept, lengths
