"""manifest.json: everything about a bundle that the graphs do not say themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fico_export import extras
from fico_export.errors import BundleError

SCHEMA_VERSION = 3
FILE_NAME = "manifest.json"
CLIP_TOKENIZER = "clip_tokenizer.json"
AWQ_FILE = "awq.npz"
_FIX = "export or copy the bundle again"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Record):
    """An input or output of a graph; a dimension is a number, or the name of a free axis."""

    name: str
    dtype: str
    shape: list[int | str]


class Graph(_Record):
    """One ONNX file and its tensors; `weight_bytes` is the size of its weights, wherever they lie."""

    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    weight_bytes: int

    @property
    def past(self) -> list[str]:
        """Inputs that are a decoder's cache: key and value of each layer, in order."""
        return [tensor.name for tensor in self.inputs if tensor.name.startswith("past_key_values.")]

    def shapes(self) -> dict[str, list[int | str]]:
        """Of inputs and outputs, by name."""
        return {tensor.name: tensor.shape for tensor in (*self.inputs, *self.outputs)}


class Table(_Record):
    """A matrix in a file of the bundle, row by row from the byte `offset` on: what one row needs is read, not the whole."""

    file: str
    offset: int
    dtype: str
    shape: tuple[int, int]


class Model(_Record):
    """Where the weights came from.

    `source` is an alias, a hub id or an absolute folder; `weights` the size in bytes of each file of weights.
    """

    model_type: str
    source: str
    revision: str | None
    weights: dict[str, int]


class Step(_Record):
    """One method: visual tokens before and after it; `schedule` maps a layer to those left after it."""

    method: str
    site: str
    before: int
    keep: int
    schedule: dict[int, int]


class Reduction(_Record):
    """What was done to the visual tokens.

    `handed_over` of the `visual_tokens` leave the vision graph, `keep` are left in the cache of the decoder's last layer,
    `cached` in that of each layer. `options` holds every option of `method`, which may be a chain.
    """

    method: str
    options: dict[str, Any]
    steps: list[Step]
    visual_tokens: int
    handed_over: int
    keep: int
    cached: list[int]
    grid: tuple[int, int]
    kept_aside: int
    positions: Literal["compact", "original"]

    @property
    def in_decoder(self) -> bool:
        """Whether the decoder reduces too."""
        return self.handed_over > self.keep


class Decoder(_Record):
    """Shape of the KV cache and the longest sequence."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context: int


class Tokens(_Record):
    """Special tokens."""

    image: str
    image_id: int
    bos: str | None
    eos: str | None
    eos_ids: list[int]


class Quantization(_Record):
    """How the weights of a precision below FP16 are stored.

    The decoder's linears have `bits` (with a scale for each `block` of inputs), lm_head and the vision tower's linears those
    given, or None where they stay floats. `form` is the operator that reads them, of `opset`; `activations` what it computes
    in. `scheme` awq: channels were scaled beforehand by the factors in the bundle's awq.npz.
    """

    bits: Literal[4]
    block: int
    scheme: Literal["rtn", "awq"]
    head_bits: Literal[8, 4] | None
    vision_bits: Literal[8] | None
    form: Literal["dequantize", "matmul_nbits"]
    activations: Literal["fp16", "fp32"]
    signed_scales: bool
    opset: int


class File(_Record):
    """A file's content, by hash and size in bytes.

    `mtime_ns` is set for a hard link to a file of the checkpoint, which others may change: when it was last changed before
    the export.
    """

    sha256: str
    size: int
    mtime_ns: int | None = None


class Manifest(_Record):
    """The whole of manifest.json."""

    schema_version: int = Field(SCHEMA_VERSION, strict=True, ge=1)
    name: str
    model: Model
    clip_text: Model | None = None
    reduction: Reduction
    decoder: Decoder
    tokens: Tokens
    image_size: int
    precision: Literal["fp32", "fp16", "int4"]
    quantization: Quantization | None = None
    target: str
    device: str | None = None
    opset: int
    ir_version: int
    graphs: dict[str, Graph]
    embedding: Table | None = None
    tools: dict[str, str]
    created: str
    files: dict[str, File] = {}

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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} is damaged: {error!r}", fix=_FIX) from error
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version}; this fico_export reads {SCHEMA_VERSION}",
                fix=f"{extras.UPDATE}; or export again with this version",
            )
        if isinstance(version, int) and version < SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version}, of an earlier fico_export; this one reads {SCHEMA_VERSION}",
                fix="export the model again",
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BundleError(f"{path} is damaged: {where}: {first['msg']}", fix=_FIX) from error

    @property
    def decoder_name(self) -> str:
        """The graph that runs tokens after a cache."""
        return "decoder_with_past" if self.reduction.in_decoder else "decoder_model_merged"

    @property
    def cache_rows(self) -> int | None:
        """Tokens that the decoder's KV cache has room for; None where it grows as far as the model's context."""
        graph = self.graphs.get(self.decoder_name)
        shapes = graph.shapes() if graph else {}
        rows = shapes.get("past_key_values.0.key", [1, 1, ""])[2]
        return rows if isinstance(rows, int) else None

    def graph(self, name: str) -> Graph:
        """A graph by name.

        Raises:
            BundleError: the bundle has no such graph, or has no hash of it.
        """
        graph = self.graphs.get(name)
        if graph is None or graph.file not in self.files:
            raise BundleError(f"{FILE_NAME} of {self.name} lists no graph {name!r} with its hash", fix=_FIX)
        return graph
