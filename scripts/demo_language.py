"""Second stage of the demo's training: projector and decoder learn to answer, the vision tower stays as it is.

A row is one picture, always with all of its 576 visual tokens, followed by several short conversations about it that do
not see one another. So the picture, which is most of the work, is paid for once.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import demo_vision
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fico_export.demo import scenes
from fico_export.demo.checkpoint import write_processor, write_tokenizer
from fico_export.demo.questions import KINDS, Question, questions
from fico_export.demo.scenes import Scene
from fico_export.models.parts.transformers_quiet import quiet_transformers

IMAGE_ID = 640
VISUAL = demo_vision.GRID**2
END = 2  # </s>


def corpus() -> list[str]:
    """What the tokenizer is trained on: the questions and answers of the first scenes."""
    asked = [q for i in range(2000) for q in questions(scenes.scene(i, "train"), random.Random(i))]
    return [
        "USER: \n",
        "ASSISTANT:",
        *(f" {q.text} {q.answer}" for q in asked),
        *(f"\n{q.text}" for q in asked),
    ]


class Text:
    """Conversations as token ids, in LLaVA's template."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = self._ids("USER: <image>\nx", special=True)
        self.prefix = ids[: ids.index(IMAGE_ID)]
        self.head = len(self.prefix) + VISUAL

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    @lru_cache(maxsize=20_000)  # noqa: B019 (one object a run)
    def _first(self, question: str) -> list[int]:
        ids = self._ids(f"USER: <image>\n{question} ASSISTANT:")
        return ids[ids.index(IMAGE_ID) + 1 :]

    @lru_cache(maxsize=20_000)  # noqa: B019
    def _next(self, text: str) -> list[int]:
        return self._ids(text)

    def conversation(self, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids after the picture, and what each of them is to be followed by: -1 where nobody asks.

        An answer is followed by `</s>`; in the history of a further turn that token does not appear, as in LLaVA's template.
        """
        ids: list[int] = []
        wanted: list[int] = []
        for i, (question, answer) in enumerate(turns):
            said = self._next(answer)
            prompt = self._next(f"USER: {question} ASSISTANT:") if i else self._first(question)
            ids += prompt + said
            wanted += [-1] * (len(prompt) - 1) + said + [END]
        return ids, wanted

    def row(
        self, scene: Scene, rng: random.Random
    ) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
        """A scene's questions as conversations of one to three turns: ids, wanted, positions, conversation, kind."""
        asked = questions(scene, rng)
        rng.shuffle(asked)
        asked = [q for kind in KINDS for q in _share(kind, [q for q in asked if q.kind == kind])]
        rng.shuffle(asked)
        ids: list[int] = []
        wanted: list[int] = []
        positions: list[int] = []
        which: list[int] = []
        kinds: list[int] = []
        talk = 0
        while asked:
            turns = [asked.pop() for _ in range(min(len(asked), rng.choice((1, 1, 2, 3))))]
            said, follow = self.conversation([(q.text, q.answer) for q in turns])
            kind = iter([KINDS.index(q.kind) for q in turns])
            now = next(kind)
            for i, token in enumerate(follow):
                kinds.append(now)
                if token == END and i + 1 < len(follow):
                    now = next(kind)
            ids += said
            wanted += follow
            positions += range(self.head, self.head + len(said))
            which += [talk] * len(said)
            talk += 1
        return ids, wanted, positions, which, kinds


def _share(kind: str, asked: list[Question]) -> list[Question]:
    """So many of a kind's questions as a row has: there are many to count, and few whose answer must be looked up."""
    most = {"count": 3, "existence": 8}.get(kind, len(asked))
    return asked * 2 if kind == "shape" else asked[:most]


class Language(nn.Module):
    """Projector and decoder as transformers has them, run on rows."""

    def __init__(
        self, width: int, heads: int, layers: int, mlp: int, vision: CLIPVisionConfig, seed: int
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        text = LlamaConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            vocab_size=IMAGE_ID + 64,
            pad_token_id=IMAGE_ID + 1,
            # Of a head's channels, those that turn slowly can match content wherever in the picture it is: at 10 000 a
            # head of 32 has ten, too few for colour and shape at once.
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            attn_implementation="sdpa",
        )
        self.decoder = LlamaForCausalLM(text)
        self.projector = LlavaMultiModalProjector(
            LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and ".layers." in name:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.decoder.model.embed_tokens.weight, std=0.5)

    def start_from(self, heads: demo_vision.Heads, features: Tensor, text: Text) -> None:
        """Start the projector aligned: a unit fires where a read-out of a label would, and adds the label's word.

        What LLaVA's first stage learns from captions is set here. From a random projector the decoder learns colours
        soon, but places and shapes not within 1500 steps.

        Args:
            heads: the read-outs of the first stage.
            features: `[B, 576, C]` of some pictures, to set the scales by.
            text: knows the words.
        """
        tokens, width = features.flatten(0, 1), features.shape[-1]
        spread = tokens.std(-1, unbiased=False)
        # The norm before the read-outs, with the tokens' mean spread in place of each one's own.
        weight = heads.patches.weight * heads.norm.weight @ (torch.eye(width) - 1 / width) / spread.mean()
        bias = heads.patches.weight @ heads.norm.bias + heads.patches.bias
        rows: list[tuple[Tensor, Tensor]] = []
        for w, b in zip(weight.split(demo_vision.COLUMNS), bias.split(demo_vision.COLUMNS), strict=True):
            w, b = (
                w - w.mean(0),
                b - b.mean(),
            )  # a softmax does not care about what its classes share, a unit does
            scale = 3 / (tokens @ w.T + b).max()
            rows.append((w * scale, b * scale))
        # Read-outs that were never asked about bare patches, or about the sign, must be silent there.
        (none_w, none_b), (sign_w, sign_b) = ((rows[0][0][i], rows[0][1][i]) for i in (0, 6))
        for i, name in enumerate(demo_vision.HEADS):
            if name in demo_vision.OBJECTS_ONLY:
                off_w, off_b = (none_w, none_b) if name == "cell" else (none_w + sign_w, none_b + sign_b)
                rows[i] = (rows[i][0] - 1.5 * off_w, rows[i][1] - 1.5 * off_b)
        first, second = self.projector.linear_1, self.projector.linear_2
        n = len(weight)
        with torch.no_grad():
            nn.init.normal_(first.weight, std=width**-0.5)
            first.weight.div_(tokens.std(0) + 1e-3)
            first.bias.copy_(-(first.weight @ tokens.mean(0)))
            first.weight[:n], first.bias[:n] = (
                torch.cat([w for w, _ in rows]),
                torch.cat([b for _, b in rows]),
            )
            nn.init.normal_(second.weight, std=0.05)
            nn.init.normal_(second.weight[:, :n], std=0.3)
            words = self.decoder.model.embed_tokens.weight
            for unit, label in enumerate(demo_vision.WORDS):
                if label:
                    ids = [text.tokenizer.token_to_id(word) for word in label]
                    # Half of the random direction stays: what sets a 4 in the second place apart from one in the first.
                    second.weight[:, unit] = 0.6 * words[ids].sum(0) + 0.5 * second.weight[:, unit]
            second.bias.zero_()
            self.decoder.lm_head.weight.copy_(0.1 * words)
            self._look_up([text.tokenizer.token_to_id(f"▁{w}") for w in (*scenes.SHAPES, *scenes.COLOURS)])

    def _look_up(self, ids: list[int]) -> None:
        """Start two heads of the first layer matching words with what the picture shows.

        Without this the decoder soon finds objects by their shape, but by their colour not within 3000 steps.
        """
        attn = self.decoder.model.layers[0].self_attn
        basis = torch.linalg.qr(self.decoder.model.embed_tokens.weight[ids].T).Q.T
        half = attn.head_dim // 2
        # Channels that hardly turn between the text and any place in the picture.
        slow = torch.arange(half - (len(ids) + 1) // 2, half)
        for head in range(2):
            rows = (torch.cat([slow, slow + half]) + head * attn.head_dim)[: len(ids)]
            attn.q_proj.weight[rows] = basis
            attn.k_proj.weight[rows] = basis

    def forward(
        self, features: Tensor, prefix: Tensor, ids: Tensor, positions: Tensor, sees: Tensor
    ) -> Tensor:
        """Hidden states of the text.

        Args:
            features: `[B, 576, C]` of the vision tower.
            prefix: ids before the picture, `[P]`.
            ids: text after it, `[B, T]`.
            positions: of the text, `[B, T]`.
            sees: which token of the whole row a text token attends to, `[B, T, P + 576 + T]`.
        """
        model = self.decoder.model
        before = model.embed_tokens(prefix).expand(len(ids), -1, -1)
        hidden = torch.cat([before, self.projector(features), model.embed_tokens(ids)], 1)
        head = hidden.shape[1] - ids.shape[1]
        cos, sin = model.rotary_emb(
            hidden, torch.cat([torch.arange(head).expand(len(ids), -1), positions], 1)
        )
        mask = sees[:, None]
        for layer in model.layers:
            attn, x = layer.self_attn, layer.input_layernorm(hidden)
            q, k, v = (
                proj(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
                for proj in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
            q, k = apply_rotary_pos_emb(q, k, cos.to(q.dtype), sin.to(q.dtype))
            text = F.scaled_dot_product_attention(q[:, :, head:], k, v, attn_mask=mask)
            if layer is model.layers[-1]:  # nobody reads the picture's tokens after the last layer
                hidden, mixed = hidden[:, head:], text
            else:
                seen = (t[:, :, :head] for t in (q, k, v))
                mixed = torch.cat([F.scaled_dot_product_attention(*seen, is_causal=True), text], 2)
            hidden = hidden + attn.o_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return model.norm(hidden)


def rows(text: Text, drawn: list[Scene], seed: int) -> dict[str, Tensor]:
    """Rows of several scenes, padded to the longest: `ids`, `wanted`, `positions`, `kinds` `[B, T]`, `sees`."""
    made = [text.row(scene, random.Random(f"{seed}/{i}")) for i, scene in enumerate(drawn)]
    longest = max(len(row[0]) for row in made)
    padded = [
        torch.tensor([list(row[part]) + [fill] * (longest - len(row[part])) for row in made])
        for part, fill in enumerate((IMAGE_ID + 1, -1, text.head, -1, -1))
    ]
    ids, wanted, positions, which, kinds = padded
    own = (which[:, :, None] == which[:, None]) & torch.ones(longest, longest, dtype=torch.bool).tril()
    picture = torch.ones(len(drawn), longest, text.head, dtype=torch.bool)
    return {
        "ids": ids, "wanted": wanted, "positions": positions, "kinds": kinds, "sees": torch.cat([picture, own], 2),
    }  # fmt: skip


def loss(
    tower: CLIPVisionModel, language: Language, text: Text, step: int, size: int, offset: int
) -> tuple[Tensor, dict[str, float]]:
    """The stage's loss on that step's scenes, and the share of answers right to the last token, by kind."""
    drawn = [scenes.scene(offset + step * size + i, "train") for i in range(size)]
    row = rows(text, drawn, step)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            seen = demo_vision.features(tower, demo_vision.pixels([scenes.render(scene) for scene in drawn]))[
                :, 1:
            ]
        hidden = language(seen, torch.tensor(text.prefix), row["ids"], row["positions"], row["sees"])
        asked = row["wanted"] >= 0
        logits = language.decoder.lm_head(hidden[asked]).float()
    wanted, kinds = row["wanted"][asked], row["kinds"][asked]
    value = F.cross_entropy(logits, wanted)
    hits = (logits.argmax(-1) == wanted).tolist()
    tally: dict[str, list[bool]] = {}
    whole = True
    for hit, token, kind in zip(hits, wanted.tolist(), kinds.tolist(), strict=True):
        whole = whole and hit
        if token == END:
            tally.setdefault(KINDS[kind], []).append(whole)
            whole = True
    return value, {kind: sum(tally[kind]) / len(tally[kind]) for kind in KINDS if kind in tally}


def write(folder: Path, tower: CLIPVisionModel, language: Language) -> None:
    """Save tower, projector and decoder as a LLaVA checkpoint in FP16 beside its tokenizer."""
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=language.decoder.config.to_dict(),
        image_token_index=IMAGE_ID,
        pad_token_id=IMAGE_ID + 1,
        image_seq_length=VISUAL,
    )
    model = LlavaForConditionalGeneration(config)
    parts = {"vision_tower": tower, "multi_modal_projector": language.projector}
    for name, part in (*parts.items(), ("language_model", language.decoder.model)):
        getattr(model.model, name).load_state_dict(part.state_dict())
    model.lm_head.load_state_dict(language.decoder.lm_head.state_dict())
    quiet_transformers()
    model.generation_config.eos_token_id = END
    model.to(torch.float16).save_pretrained(folder)
    write_text(folder)
    write_processor(folder, {"image_size": scenes.SIZE, "patch_size": demo_vision.PATCH})


def write_text(folder: Path) -> None:
    """The tokenizer alone, as training needs it too."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, corpus(), IMAGE_ID)
