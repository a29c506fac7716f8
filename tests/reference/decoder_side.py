"""Plain float64 NumPy reference of the visual-token reductions inside a Llama decoder.

Written from the published descriptions alone and sharing no code with the package. The decoder is written out
too: only its weights come from transformers. There is no KV cache: for every new token the whole sequence goes
through all layers again. Visual tokens count from 0; "text" is what follows the image in the prompt; ties go
to the lower index.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from reference.reducers import Floats, Indices, _ascending, _softmax, _top

Bools = npt.NDArray[np.bool_]

METHODS = ("fastv", "pyramiddrop", "sparsevlm", "ficoco-l")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2},
    "pyramiddrop": {"layers": None},
    "sparsevlm": {"layers": None, "recycle": 0.3},
    "ficoco-l": {"beta": 0.6, "gamma": 0.6, "epsilon": 0.998, "first_layer": None},
}


@dataclass(frozen=True)
class Result:
    """What a greedy generation gave.

    ids: the new tokens. logits [new_tokens, V]: those that chose each of them. kept: per reducing layer, the
    ascending visual tokens left after it (a merged one is named by its target or centre). visual_per_layer:
    visual tokens in each layer's cache.
    """

    ids: list[int]
    logits: Floats
    kept: dict[int, Indices]
    visual_per_layer: list[int]


# ------------------------------------------------------------------------------------------- the reductions


def top(scores: Sequence[float] | Floats, k: int) -> list[int]:
    """Indices of the k largest scores, best first; the lower index first among equals."""
    if not 0 <= k <= len(scores):
        raise ValueError(f"no top {k} of {len(scores)} scores")
    return _top(scores, k)


def counts(n: int, keep: int, steps: int) -> list[int]:
    """Tokens left after each of `steps` reductions from n to keep, in a geometric progression."""
    return [round(n * (keep / n) ** ((i + 1) / steps)) for i in range(steps - 1)] + [keep]


def raters(visual_embeds: npt.ArrayLike, text_embeds: npt.ArrayLike) -> Bools:
    """Text tokens [T] that SparseVLM lets score: as near to the image as the mean text token, or nearer."""
    visual, text = np.asarray(visual_embeds, np.float64), np.asarray(text_embeds, np.float64)
    shares = np.zeros(len(text))
    for row in visual:
        shares += _softmax(text @ row)
    exact = [Fraction(float(share) / len(visual)) for share in shares]  # rounds no tie away
    return np.array([share * len(exact) >= sum(exact) for share in exact])


def _squared_distances(x: Floats) -> Floats:
    """Squared distance over the width C of every pair of rows of x, [q, q]."""
    q, width = x.shape
    distance = np.zeros((q, q))
    for i in range(q):
        for j in range(q):
            distance[i, j] = float(np.sum((x[i] - x[j]) ** 2)) / width
    return distance


def _density_peaks(distance: Floats, c: int) -> list[int]:
    """The c centres, ascending, of candidates with squared distances [q, q]."""
    q = len(distance)
    if q == 1:
        return [0]
    density = np.zeros(q)
    for i in range(q):
        nearest = sorted(distance[i, j] for j in range(q) if j != i)[: min(5, q - 1)]
        density[i] = math.exp(-sum(nearest) / len(nearest))
    peak = np.zeros(q)
    for i in range(q):
        denser = [j for j in range(q) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        squared = min(distance[i, j] for j in denser) if denser else max(distance[i])
        peak[i] = density[i] * math.sqrt(squared)
    return sorted(top(peak, c))


def sparsevlm_layer(
    tokens: npt.ArrayLike, attention: npt.ArrayLike, raters: npt.ArrayLike, keep: int, recycle: float = 0.3
) -> tuple[Floats, Indices]:
    """One SparseVLM reduction: pruning by the raters' attention, with some of the pruned merged and recycled.

    tokens [n, C]: visual rows after the attention residual; attention [T, n]: text to visual, mean over heads;
    raters [T]: the text tokens that score. Returns the `keep` rows and the ascending rows they stand for.
    """
    x = np.asarray(tokens, np.float64)
    rating = np.asarray(attention, np.float64)[np.asarray(raters, bool)]
    n = len(x)
    if not 1 <= keep <= n:
        raise ValueError(f"cannot keep {keep} of {n} visual tokens")
    scores = sum(rating) / len(rating)

    merged = min(keep - 1, round(recycle * (n - keep) / 10))
    whole = keep - merged
    ranked = top(scores, n)
    output = {v: x[v] for v in ranked[:whole]}
    if merged > 0:
        q = min(n - whole, max(merged, round(recycle * (n - whole))))
        candidates = sorted(ranked[whole : whole + q])
        distance = _squared_distances(x[candidates])
        centres = _density_peaks(distance, merged)
        members: dict[int, list[int]] = {centre: [] for centre in centres}
        for i in range(q):
            members[i if i in members else min(centres, key=lambda j: (distance[i, j], j))].append(i)
        for centre, joined in members.items():
            output[candidates[centre]] = sum(x[candidates[i]] for i in joined) / len(joined)

    indices = _ascending(output)
    return np.stack([output[int(v)] for v in indices]), indices


def ficoco_l_layer(
    tokens: npt.ArrayLike,
    visual_logits: npt.ArrayLike,
    to_text: npt.ArrayLike,
    from_text: npt.ArrayLike,
    drop: int,
    beta: float = 0.6,
    gamma: float = 0.6,
    epsilon: float = 0.998,
) -> tuple[Floats, Indices]:
    """One FiCoCo-L reduction: the `drop` most redundant visual rows are shared out among the others.

    tokens [n, C]: visual rows after the attention residual; the rest are logits, mean over heads, neither
    masked nor softmaxed: visual_logits [n, n], to_text [n, T] (text as key), from_text [T, n] (text as query).
    Returns the n - drop targets and their ascending rows.
    """
    x, among = np.asarray(tokens, np.float64), np.asarray(visual_logits, np.float64)
    to, back = np.asarray(to_text, np.float64), np.asarray(from_text, np.float64)
    n, texts = to.shape
    if not 0 <= drop < n:
        raise ValueError(f"cannot drop {drop} of {n} visual tokens")

    redundancy = [beta * among[i].mean() - (1 - beta) * to[i].mean() for i in range(n)]
    sources = top(redundancy, drop)
    targets = sorted(set(range(n)) - set(sources))
    per_source = max(1, math.ceil(round((1 - epsilon) * (len(targets) - 1), 9)))
    per_source = min(per_source, len(targets))

    total = {j: x[j].copy() for j in targets}
    weight = dict.fromkeys(targets, 1.0)
    for i in sources:
        fit = np.zeros(len(targets))
        for at, j in enumerate(targets):
            fit[at] = gamma * among[i, j] + (1 - gamma) * (to[i] @ back[:, j]) / texts
        chosen = top(fit, per_source)
        for at, share in zip(chosen, _softmax(fit[chosen]), strict=True):
            total[targets[at]] += share * x[i]
            weight[targets[at]] += share
    return np.stack([total[j] / weight[j] for j in targets]), _ascending(targets)


def schedule(
    method: str | None, layers: int, visual: int, keep: int, options: Mapping[str, Any]
) -> dict[int, int]:
    """Visual tokens left after each reducing layer of a decoder; `options` holds all of the method's."""
    if method is None or keep == visual:
        return {}
    if method == "fastv":
        plan = {options["layer"] - 1: keep}
    elif method == "ficoco-l":
        first = options["first_layer"]
        first = max(0, layers // 8 - 1) if first is None else first
        reducing = range(first, layers - 1)
        if not reducing:
            raise ValueError(f"no layer from {first} on to reduce in, of {layers}")
        every, more = divmod(visual - keep, len(reducing))
        plan, left = {}, visual
        for i, layer in enumerate(reducing):
            drop = every + (1 if i < more else 0)
            left -= drop
            if drop:
                plan[layer] = left
    else:
        parts = (8, 16, 24) if method == "pyramiddrop" else (2, 6, 15)  # as layers of 32
        chosen = options["layers"]
        chosen = sorted({layers * part // 32 for part in parts}) if chosen is None else list(chosen)
        if not chosen or chosen != sorted(set(chosen)):
            raise ValueError(f"layers {chosen} must ascend")
        plan = dict(zip(chosen, counts(visual, keep, len(chosen)), strict=True))
    if min(plan) < 0 or max(plan) >= layers:
        raise ValueError(f"reducing layers {sorted(plan)} must be among {layers}")
    return plan


# ---------------------------------------------------------------------------------------------- the decoder


def _array(tensor: Any) -> Floats:
    """A torch tensor as float64."""
    return tensor.detach().cpu().double().numpy()


class _Linear:
    """x [n, in] to [n, out]."""

    def __init__(self, module: Any) -> None:
        self.weight = _array(module.weight)
        self.bias = 0.0 if module.bias is None else _array(module.bias)

    def __call__(self, x: Floats) -> Floats:
        return x @ self.weight.T + self.bias


class _Norm:
    """RMS norm of each row."""

    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = _array(module.weight), module.variance_epsilon

    def __call__(self, x: Floats) -> Floats:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + self.epsilon) * self.weight


class _Layer:
    """The parts of one decoder layer; the residuals are the caller's."""

    def __init__(self, layer: Any, config: Any) -> None:
        self.norm, self.mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        attention, mlp = layer.self_attn, layer.mlp
        self.q, self.k = _Linear(attention.q_proj), _Linear(attention.k_proj)
        self.v, self.o = _Linear(attention.v_proj), _Linear(attention.o_proj)
        self.gate, self.up, self.down = _Linear(mlp.gate_proj), _Linear(mlp.up_proj), _Linear(mlp.down_proj)
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = len(self.q.weight) // self.heads

    def logits(self, x: Floats, cosine: Floats, sine: Floats) -> Floats:
        """Scaled products of rotated queries and keys of the rows x, unmasked, [H, n, n]."""
        normed = self.norm(x)
        queries = self._rotated(self.q(normed), self.heads, cosine, sine)
        keys = self._rotated(self.k(normed), self.groups, cosine, sine)
        shared = self.heads // self.groups
        rows = [queries[h] @ keys[h // shared].T / math.sqrt(self.head_dim) for h in range(self.heads)]
        return np.stack(rows)

    def _rotated(self, x: Floats, heads: int, cosine: Floats, sine: Floats) -> list[Floats]:
        """Projections [n, heads * D] as one [n, D] per head, rotated."""
        rotated, half = [], self.head_dim // 2
        for h in range(heads):
            one = x[:, h * self.head_dim : (h + 1) * self.head_dim]
            a, b = one[:, :half], one[:, half:]
            rotated.append(np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=1))
        return rotated

    def attend(self, x: Floats, attention: Floats) -> Floats:
        """What the attention [H, n, n] adds to the rows x."""
        values, shared = self.v(self.norm(x)), self.heads // self.groups
        mixed = []
        for h in range(self.heads):
            group = h // shared
            mixed.append(attention[h] @ values[:, group * self.head_dim : (group + 1) * self.head_dim])
        return self.o(np.concatenate(mixed, axis=1))

    def feed(self, x: Floats) -> Floats:
        """What the MLP adds to the rows x."""
        normed = self.mlp_norm(x)
        gate = self.gate(normed)
        return self.down(gate / (1 + np.exp(-gate)) * self.up(normed))


class _Decoder:
    """The weights of a text model with its head."""

    def __init__(self, model: Any) -> None:
        text = model.model.language_model
        if text.config.hidden_act != "silu" or text.rotary_emb.rope_type in ("dynamic", "longrope"):
            raise ValueError("only SwiGLU decoders with fixed rotary frequencies")
        self.layers = [_Layer(layer, text.config) for layer in text.layers]
        self.norm, self.head = _Norm(text.norm), _Linear(model.lm_head)
        self.embeddings = _array(text.embed_tokens.weight)
        self.frequencies = _array(text.rotary_emb.inv_freq)
        self.rope_scale = float(text.rotary_emb.attention_scaling)
        self.window = getattr(text.config, "sliding_window", None) or math.inf

    def rotation(self, positions: Indices) -> tuple[Floats, Floats]:
        """Cosines and sines [n, D / 2] of position ids."""
        angle = np.outer(positions, self.frequencies)
        return np.cos(angle) * self.rope_scale, np.sin(angle) * self.rope_scale


def _causal_softmax(logits: Floats) -> Floats:
    """Attention [H, n, n] of logits: row i over the columns up to i."""
    attention = np.zeros_like(logits)
    for h in range(len(logits)):
        for i in range(logits.shape[1]):
            attention[h, i, : i + 1] = _softmax(logits[h, i, : i + 1])
    return attention


def _reduce(
    method: str,
    x: Floats,
    logits: Floats,
    start: int,
    visual: int,
    left: int,
    rating: Bools | None,
    options: Mapping[str, Any],
) -> tuple[Floats, Indices]:
    """Visual rows of the live prompt rows x reduced to `left`: rows and which they are, from logits [H, p, p]."""
    rows = x[start : start + visual]
    picture, text = slice(start, start + visual), slice(start + visual, None)
    if method == "ficoco-l":
        mean = logits.mean(axis=0)
        return ficoco_l_layer(
            rows,
            mean[picture, picture],
            mean[picture, text],
            mean[text, picture],
            visual - left,
            beta=options["beta"],
            gamma=options["gamma"],
            epsilon=options["epsilon"],
        )
    attention = _causal_softmax(logits).mean(axis=0)
    if method == "sparsevlm":
        return sparsevlm_layer(rows, attention[text, picture], rating, left, options["recycle"])
    indices = _ascending(top(attention[-1, picture], left))
    return rows[indices], indices


def generate(
    model: Any,
    embeds: Any,
    start: int,
    visual: int,
    positions: Sequence[int],
    method: str | None,
    keep: int,
    new_tokens: int,
    **options: Any,
) -> Result:
    """Greedy generation by a LlavaForConditionalGeneration whose decoder reduces its visual tokens.

    embeds [S, C]: input embeddings of the prompt, visual rows from `start` on; positions: their S ids; keep:
    visual tokens left after the last reduction. A method of None, or keep = visual, reduces nothing. Options,
    with None for the default: fastv layer; pyramiddrop layers; sparsevlm layers, recycle; ficoco-l beta, gamma,
    epsilon, first_layer.
    """
    prompt = _array(embeds)
    if method is not None and method not in METHODS:
        raise ValueError(f"method {method!r} is none of {METHODS}")
    if len(positions) != len(prompt) or not 0 <= start < start + visual < len(prompt):
        raise ValueError(f"{len(positions)} positions, image {start} + {visual}: prompt has {len(prompt)}")
    if new_tokens < 1:
        raise ValueError(f"{new_tokens} new tokens")
    if method is not None and not 1 <= keep <= visual:
        raise ValueError(f"keep {keep} must be in 1 … {visual}")
    defaults = _DEFAULTS.get(method or "", {})
    if set(options) - set(defaults):
        raise TypeError(f"{method} takes {sorted(defaults)}, not {sorted(set(options) - set(defaults))}")
    given = {name: value for name, value in options.items() if value is not None}
    decoder = _Decoder(model)
    if len(prompt) + new_tokens > decoder.window:
        raise ValueError(f"no sliding window of {decoder.window}")
    every = {**defaults, **given}
    plan = schedule(method, len(decoder.layers), visual, keep, every)
    rating = None
    if method == "sparsevlm":
        rating = raters(prompt[start : start + visual], prompt[start + visual :])

    ids: list[int] = []
    logits: list[Floats] = []
    kept: dict[int, Indices] = {}
    cached: list[int] = []
    for step in range(new_tokens):
        last, now, held = _forward(
            decoder, prompt, start, visual, positions, method, plan, rating, every, ids
        )
        if step == 0:
            kept, cached = now, held
        if any(not np.array_equal(now[layer], kept[layer]) for layer in plan):
            raise RuntimeError("a tie too close for float64: the prompt was reduced in two ways")
        logits.append(last)
        ids.append(int(np.argmax(last)))
    return Result(ids, np.stack(logits), kept, cached)


def _forward(
    decoder: _Decoder,
    prompt: Floats,
    start: int,
    visual: int,
    positions: Sequence[int],
    method: str | None,
    plan: Mapping[int, int],
    rating: Bools | None,
    options: Mapping[str, Any],
    ids: Sequence[int],
) -> tuple[Floats, dict[int, Indices], list[int]]:
    """The whole sequence through all layers: last row's logits, `kept` and `visual_per_layer` of Result.

    A reduction before the attention leaves its layer the reduced rows as keys; one after it, those before. Only
    the rows of the prompt, which come first, have a say in it.
    """
    x = np.concatenate([prompt, decoder.embeddings[list(ids)]]) if ids else prompt
    at = np.array([*positions, *(positions[-1] + 1 + i for i in range(len(ids)))], np.int64)
    alive = np.arange(visual)
    kept: dict[int, Indices] = {}
    cached: list[int] = []

    for number, layer in enumerate(decoder.layers):
        scores = layer.logits(x, *decoder.rotation(at))
        reducing = number in plan
        if reducing and method == "pyramiddrop":
            x, at, alive = _reduced(
                x, at, alive, scores, start, len(ids), method, plan[number], rating, options
            )
            kept[number] = alive
            scores = layer.logits(x, *decoder.rotation(at))
        cached.append(len(alive))
        x = x + layer.attend(x, _causal_softmax(scores))
        if reducing and method != "pyramiddrop":
            x, at, alive = _reduced(
                x, at, alive, scores, start, len(ids), method, plan[number], rating, options
            )
            kept[number] = alive
        x = x + layer.feed(x)
    return decoder.head(decoder.norm(x[-1:]))[0], kept, cached


def _reduced(
    x: Floats,
    at: Indices,
    alive: Indices,
    scores: Floats,
    start: int,
    generated: int,
    method: str,
    left: int,
    rating: Bools | None,
    options: Mapping[str, Any],
) -> tuple[Floats, Indices, Indices]:
    """Rows, position ids and live visual tokens after a reduction, from the scores [H, n, n] of its layer."""
    own = len(x) - generated
    end = start + len(alive)
    rows, chosen = _reduce(method, x[:own], scores[:, :own, :own], start, len(alive), left, rating, options)
    x = np.concatenate([x[:start], rows, x[end:]])
    at = np.concatenate([at[:start], at[start:end][chosen], at[end:]])
    return x, at, alive[chosen]
