"""Whether what a manifest says fits together: its numbers, its graphs' tensors, and the sizes of its files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fico_export.bundle import graph_names

if TYPE_CHECKING:
    from fico_export.bundle.manifest import Manifest
    from fico_export.bundle.profiles import Profile

# Tensors without which a graph is of no use.
_VISION = {"pixel_values", "image_features", "keep_index"}
_NEEDED = {
    graph_names.EMBEDDING: {"input_ids", "inputs_embeds"},
    graph_names.DECODER: {"inputs_embeds", "logits"},
    graph_names.WITH_PAST: {"inputs_embeds", "logits"},
    graph_names.PREFILL: {"inputs_embeds", "logits"},
}


def first_contradiction(manifest: Manifest) -> str | None:
    """A contradiction in words; None where there is none."""
    for check in (_tokens, _profiles, _graphs, _cache, _embedding):
        for found in check(manifest):
            return found
    return None


def _tokens(manifest: Manifest) -> Iterator[str]:
    reduction, layers = manifest.reduction, manifest.decoder.layers
    if not reduction.keep <= reduction.handed_over <= reduction.visual_tokens:
        yield (
            f"it keeps {reduction.keep} of {reduction.handed_over} tokens handed over, of {reduction.visual_tokens} in all"
        )
    if len(reduction.cached) != layers:
        yield f"reduction.cached is of {len(reduction.cached)} layers, and the decoder has {layers}"
    if any(count > reduction.handed_over for count in reduction.cached):
        yield f"reduction.cached says {max(reduction.cached)}, and {reduction.handed_over} tokens are handed over"
    for step in reduction.steps:
        if step.keep > step.before:
            yield f"the step {step.method} keeps {step.keep} of {step.before} tokens"
    if (manifest.precision == "int4") != (manifest.quantization is not None):
        yield f"precision {manifest.precision}, and {'a' if manifest.quantization else 'no'} quantization"


def _profiles(manifest: Manifest) -> Iterator[str]:
    """Each profile's numbers, and those of the first against what is said of the whole."""
    reduction, first = manifest.reduction, manifest.profile
    counts = (first.visual_tokens, first.handed_over)
    if counts != (reduction.visual_tokens, reduction.handed_over):
        yield (
            f"the profile {first.name} hands over {counts[1]} of {counts[0]} visual tokens, and the reduction "
            f"{reduction.handed_over} of {reduction.visual_tokens}"
        )
    if len({profile.name for profile in manifest.profiles}) < len(manifest.profiles):
        yield "two profiles have one name"
    of_graphs: dict[str, Profile] = {}
    for profile in manifest.profiles:
        other = of_graphs.setdefault(profile.graph, profile)
        if _taken(other) != _taken(profile):
            yield f"the profiles {other.name} and {profile.name} have one graph, and tiles or tokens that differ"
    if reduction.in_decoder and len({profile.handed_over for profile in manifest.profiles}) > 1:
        yield "the decoder reduces as many visual tokens as one profile hands over, and another hands over others"
    for profile in manifest.profiles:
        if profile.graph in (*graph_names.DECODERS, graph_names.EMBEDDING, graph_names.CLIP_TEXT):
            yield f"the profile {profile.name} has the graph {profile.graph}, which is no vision graph"
        if profile.handed_over > profile.visual_tokens:
            yield f"the profile {profile.name} hands over {profile.handed_over} of {profile.visual_tokens} visual tokens"
        (rows, columns), (tile_rows, tile_columns) = profile.token_grid, profile.tile_grid
        cells = profile.tiles * rows * columns
        if profile.visual_tokens - cells not in (0, profile.tiles):  # one beside each grid: CLS
            yield f"the profile {profile.name} has {profile.visual_tokens} visual tokens, and {profile.tiles} grids of {rows}×{columns}"
        taken = (profile.frames, profile.tiles * profile.frames)
        if profile.tiles < tile_rows * tile_columns or profile.input_shape[0] not in taken:
            of_frames = f" of {profile.frames} frames" if profile.frames > 1 else ""
            yield (
                f"the profile {profile.name} has {profile.tiles} tiles{of_frames}, a grid of {tile_rows}×{tile_columns} of them, "
                f"and pixel_values of {profile.input_shape[0]}"
            )
        if profile.runs > 1 and profile.handed_over % profile.runs:
            yield f"the profile {profile.name} hands over {profile.handed_over} visual tokens in {profile.runs} equal parts"
        if profile.shares and (
            sum(tiles for tiles, _ in profile.shares) != profile.tiles
            or sum(count for _, count in profile.shares) != profile.handed_over
        ):
            yield f"the shares of the profile {profile.name} are not those of {profile.tiles} tiles and {profile.handed_over} tokens"
        for side, patches in zip(profile.size, profile.patch_grid, strict=True):
            if patches * profile.patch_size > side:
                yield f"the profile {profile.name} has {patches} patches of {profile.patch_size} px in {side} px"


def _taken(profile: Profile) -> tuple[object, ...]:
    """What a graph takes of an image and gives."""
    return (profile.input_shape, profile.patch_grid, profile.token_grid, profile.handed_over // profile.runs)


def _graphs(manifest: Manifest) -> Iterator[str]:
    """The shapes of the tensors that the runtime fills or reads, where they are fixed."""
    decoder = manifest.decoder
    visual, axes = {profile.graph: profile for profile in manifest.profiles}, manifest.layout.axes
    for name, graph in manifest.graphs.items():
        expected: dict[str, tuple[int | None, ...]] = {
            "inputs_embeds": (None, None, decoder.hidden_size),
            "position_ids": (None, None) if axes == 1 else (axes, None, None),
            graph_names.PLANES: (None, None, None, decoder.hidden_size),
            "logits": (None, None, decoder.vocab_size),
        }
        if (profile := visual.get(name)) is not None:
            expected["pixel_values"] = profile.input_shape
            tokens = profile.handed_over // profile.runs
            expected["image_features"] = (None, tokens, decoder.hidden_size)
            expected["keep_index"] = (None, tokens)
            expected[graph_names.VALID] = (
                profile.tiles // profile.runs,
                profile.visual_tokens // profile.tiles,
            )
        if not graph.file.endswith(".onnx"):
            yield f"the graph {name} is in {graph.file!r}, no .onnx file"
        names = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
        needed = _VISION if name in visual else _NEEDED.get(name, set())
        for missing in sorted(needed - names):
            yield f"the graph {name} has no {missing}"
        if len(shapes := graph.shapes()) != len(graph.inputs) + len(graph.outputs):
            yield f"two tensors of the graph {name} have one name"
        for tensor, wanted in expected.items():
            shape = shapes.get(tensor)
            if shape is not None and not _fits(shape, wanted):
                words = ", ".join("any" if size is None else str(size) for size in wanted)
                yield f"{tensor} of {name} is {shape}, and by the rest of the manifest it should be [{words}]"


def _cache(manifest: Manifest) -> Iterator[str]:
    decoder, graph = manifest.decoder, manifest.graphs.get(manifest.decoder_name)
    if graph is None:
        return
    kinds = ("key", "value")
    layers = [f"past_key_values.{i}.{kind}" for i in range(decoder.layers) for kind in kinds]
    if graph.past != layers:
        yield f"{manifest.decoder_name} has {len(graph.past)} cache inputs, and the decoder {decoder.layers} layers"
    shapes = graph.shapes()
    for name in graph.past:
        if not _fits(shapes[name], (None, decoder.kv_heads, None, decoder.head_dim)):
            yield (
                f"{name} is {shapes[name]}, and the decoder has {decoder.kv_heads} key-value heads of {decoder.head_dim}"
            )
        if not _fits(shapes[name], (manifest.max_batch, None, None, None)):
            yield f"{name} is {shapes[name]}, and max_batch is {manifest.max_batch}"


def _embedding(manifest: Manifest) -> Iterator[str]:
    table, decoder = manifest.embedding, manifest.decoder
    if table is None:
        return
    if table.shape[1] != decoder.hidden_size:
        yield f"the embeddings have {table.shape[1]} channels, and the decoder {decoder.hidden_size}"
    listed = manifest.files.get(table.file)
    if listed is not None and table.end > listed.size:
        yield f"the embeddings end at byte {table.end} of {table.file}, which has {listed.size}"


def _fits(shape: list[int | str], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        a == b for a, b in zip(shape, wanted, strict=True) if isinstance(a, int) and b is not None
    )
