"""manifest.json: everything about a bundle that the graphs do not say themselves."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from fico_export import documents, extras
from fico_export.bundle import graph_names
from fico_export.bundle.bounds import (
    MAX_FILES,
    BundlePath,
    Bytes,
    Count,
    Dtype,
    GraphName,
    Label,
    Layers,
    Positive,
    Record,
    Sha256,
    TensorName,
    Text,
    require_distinct,
)
from fico_export.bundle.consistency import first_contradiction
from fico_export.bundle.profiles import MAX_PROFILES, LayoutRecord, Profile, with_profile
from fico_export.errors import BundleError

SCHEMA_VERSION = 5
OLDEST = 3  # that is read too: up to 4 there is one profile, which has no name, and in 3 no `request`
FILE_NAME = "manifest.json"
CLIP_TOKENIZER = "clip_tokenizer.json"
AWQ_FILE = "awq.npz"
NEWLINE_FILE = "image_newline.npy"
MOST_BATCH = 256
"""Sequences that a decoder may run together: more than any server of one machine does."""

MAX_BYTES = 16 * 2**20
"""Size of the largest manifest: a hundred times one of a model with 80 layers."""

READ_BY_NAME = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    CLIP_TOKENIZER,
    AWQ_FILE,
    NEWLINE_FILE,
)
"""Files that this package, or another that opens the bundle, reads by their name alone."""

_FIX = "export or copy the bundle again"


class TensorSpec(Record):
    """An input or output of a graph; a dimension is a number, or the name of a free axis."""

    name: TensorName
    dtype: Dtype
    shape: list[Positive | Label] = Field(max_length=16)


class Graph(Record):
    """One ONNX file and its tensors; `weight_bytes` is the size of its weights, wherever they lie."""

    file: BundlePath
    inputs: list[TensorSpec] = Field(max_length=4096)
    outputs: list[TensorSpec] = Field(max_length=4096)
    weight_bytes: Bytes

    @property
    def past(self) -> list[str]:
        """Inputs that are a decoder's cache: key and value of each layer, in order."""
        return [tensor.name for tensor in self.inputs if tensor.name.startswith("past_key_values.")]

    def shapes(self) -> dict[str, list[int | str]]:
        """Of inputs and outputs, by name."""
        return {tensor.name: tensor.shape for tensor in (*self.inputs, *self.outputs)}


class Table(Record):
    """A matrix in a file of the bundle, row by row from the byte `offset` on: what one row needs is read, not the whole."""

    file: BundlePath
    offset: Bytes
    dtype: Literal["float32", "float16"]
    shape: tuple[Positive, Positive]

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + self.shape[0] * self.shape[1] * (4 if self.dtype == "float32" else 2)


class Model(Record):
    """Where the weights came from.

    `source` is an alias, a hub id or an absolute folder; `weights` the size in bytes of each file of weights.
    """

    model_type: Label
    source: Text
    revision: Label | None
    weights: dict[Text, Bytes] = Field(max_length=MAX_FILES)


class Step(Record):
    """One method: visual tokens before and after it; `schedule` maps a layer to those left after it."""

    method: Label
    site: Label
    before: Count
    keep: Count
    schedule: dict[int, Count] = Field(max_length=1024)


class Reduction(Record):
    """What was done to the visual tokens, of an image of the first profile.

    `handed_over` of the `visual_tokens` leave the vision graph, `keep` are left in the cache of the decoder's last layer,
    `cached` in that of each layer. `options` holds every option of `method`, which may be a chain.
    """

    method: Label
    options: dict[Label, Any] = Field(max_length=256)
    steps: list[Step] = Field(max_length=64)
    visual_tokens: Positive
    handed_over: Positive
    keep: Positive
    cached: list[Count] = Field(max_length=1024)
    positions: Literal["compact", "original"]

    @property
    def in_decoder(self) -> bool:
        """Whether the decoder reduces too."""
        return self.handed_over > self.keep


class Decoder(Record):
    """Shape of the KV cache and the longest sequence."""

    layers: Layers
    kv_heads: Positive
    head_dim: Positive
    hidden_size: Positive
    vocab_size: Positive
    context: Positive


class Tokens(Record):
    """Special tokens; `named` holds those that a chat template may name, `additional` those that have no name."""

    image: Text
    image_id: Count
    bos: Text | None
    eos: Text | None
    eos_ids: list[Count] = Field(max_length=1024)
    video: Text | None = None
    video_id: Count | None = None
    named: dict[Text, Text] = Field({}, max_length=1024)
    additional: list[Text] = Field([], max_length=4096)


class Quantization(Record):
    """How the weights of a precision below FP16 are stored.

    The decoder's linears have `bits` (with a scale for each `block` of inputs), lm_head and the vision tower's linears those
    given, or None where they stay floats. `form` is the operator that reads them, of `opset`; `activations` what it computes
    in. `scheme` awq: channels were scaled beforehand by the factors in the bundle's awq.npz.
    """

    bits: Literal[4]
    block: Positive
    scheme: Literal["rtn", "awq"]
    head_bits: Literal[8, 4] | None
    vision_bits: Literal[8] | None
    form: Literal["dequantize", "matmul_nbits"]
    activations: Literal["fp16", "fp32"]
    signed_scales: bool
    opset: Count


class File(Record):
    """A file's content, by hash and size in bytes.

    `mtime_ns` is set for a hard link to a file of the checkpoint, which others may change: when it was last changed before
    the export.
    """

    sha256: Sha256
    size: Bytes
    mtime_ns: int | None = Field(None, strict=True, ge=-(2**62), le=2**62)


def _distinct(files: dict[str, File]) -> dict[str, File]:
    require_distinct(files)
    for name in files:
        if name.split("/")[0] in ("trt", "deploy") or name in (FILE_NAME, "profile.json"):
            raise ValueError(f"{name!r} is no file of the manifest's: commands write there")
    return files


def _time(text: str) -> str:
    if not 1970 <= datetime.fromisoformat(text).year < 2200:
        raise ValueError("it is not of this age")
    return text


class Manifest(Record):
    """The whole of manifest.json; `request` has the options that make the same bundle again."""

    schema_version: int = Field(SCHEMA_VERSION, strict=True, ge=1)
    name: Label
    request: dict[Label, Any] = Field({}, max_length=64)
    model: Model
    clip_text: Model | None = None
    reduction: Reduction
    decoder: Decoder
    tokens: Tokens
    profiles: list[Profile] = Field(min_length=1, max_length=MAX_PROFILES)
    layout: LayoutRecord
    max_batch: int = Field(1, strict=True, ge=1, le=MOST_BATCH)
    precision: Literal["fp32", "fp16", "int4"]
    quantization: Quantization | None = None
    target: Label
    device: Label | None = None
    opset: Count
    ir_version: Count
    graphs: dict[GraphName, Graph] = Field(max_length=64)
    embedding: Table | None = None
    tools: dict[Label, Label] = Field(max_length=256)
    created: Annotated[str, Field(max_length=64), AfterValidator(_time)]
    files: Annotated[dict[BundlePath, File], Field(max_length=MAX_FILES), AfterValidator(_distinct)] = Field(
        {}
    )

    def save(self, folder: Path) -> None:
        """Write manifest.json."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read manifest.json.

        Raises:
            BundleError: no bundle, a newer schema, or a manifest that is not one.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise BundleError(
                f"{folder} is no bundle: it has no {FILE_NAME}",
                fix="make one with `fico-export --model M --keep K`, and give its folder",
            )
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path} is larger than {MAX_BYTES >> 20} MiB", fix=_FIX)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is damaged: {error}", fix=_FIX) from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, place: str) -> Manifest:
        """The manifest that a JSON text holds; `place` names it in errors.

        Raises:
            BundleError: a newer or older schema, a value that is none, or values that contradict each other.
        """
        content = documents.parse(text, place, error=BundleError, fix=_FIX)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version is None:
            raise BundleError(f"{place} is damaged: schema_version is missing", fix=_FIX)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(
                f"{place} has schema version {version}; this fico_export reads {SCHEMA_VERSION}",
                fix=f"{extras.UPDATE}; or export again with this version",
            )
        if isinstance(version, int) and version < OLDEST:
            raise BundleError(
                f"{place} has schema version {version}, of an earlier fico_export; this one reads {OLDEST} to {SCHEMA_VERSION}",
                fix="export the model again",
            )
        try:
            made = cls.model_validate(content if version == SCHEMA_VERSION else with_profile(content))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part)[:64] for part in first["loc"])
            raise BundleError(f"{place} is damaged: {where}: {first['msg']}", fix=_FIX) from error
        if contradiction := first_contradiction(made):
            raise BundleError(f"{place} contradicts itself: {contradiction}", fix=_FIX)
        return made

    def require(self, name: str, what: str = "") -> str:
        """A file's path in the bundle, which is in the manifest with its hash.

        Raises:
            BundleError: it is not.
        """
        if name not in self.files:
            raise BundleError(
                f"{FILE_NAME} of {self.name} lists no {name!r} with its hash{f', {what}' if what else ''}: it was added or "
                "edited after the export",
                fix=_FIX,
            )
        return name

    @property
    def profile(self) -> Profile:
        """The first one: what is said of the bundle as a whole is said of it."""
        return self.profiles[0]

    @property
    def decoder_name(self) -> str:
        """The graph that runs tokens after a cache."""
        return graph_names.WITH_PAST if self.reduction.in_decoder else graph_names.DECODER

    @property
    def cache_rows(self) -> int | None:
        """Tokens that the decoder's KV cache has room for; None where it grows as far as the model's context."""
        graph = self.graphs.get(self.decoder_name)
        shapes = graph.shapes() if graph else {}
        rows = shapes.get("past_key_values.0.key", [1, 1, ""])[2]
        return rows if isinstance(rows, int) else None

    @property
    def planes(self) -> int:
        """Inputs that are added to the decoder's hidden states, one after each of its first layers."""
        graph = self.graphs.get(self.decoder_name)
        shape = graph.shapes().get(graph_names.PLANES, []) if graph else []
        return shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0

    def graph(self, name: str) -> Graph:
        """A graph by name.

        Raises:
            BundleError: the bundle has no such graph, or has no hash of it.
        """
        graph = self.graphs.get(name)
        if graph is None or graph.file not in self.files:
            raise BundleError(f"{FILE_NAME} of {self.name} lists no graph {name!r} with its hash", fix=_FIX)
        return graph
