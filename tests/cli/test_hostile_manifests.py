"""Bundles of a stranger: nothing outside of them is read or touched, and nothing that their manifest does not list."""

import json
import os
import subprocess
from hashlib import sha256

import pytest
from cli_tools import copied, edit_json
from onnx import TensorProto, helper

from fico_export.bundle import files
from fico_export.bundle.bounds import bundle_path
from fico_export.bundle.external import external_files
from fico_export.bundle.manifest import READ_BY_NAME, Manifest
from fico_export.errors import BundleError

RUN = ["--prompt", "hi", "--max-new-tokens", 1]


@pytest.fixture
def own(bundle, tmp_path):
    """A bundle to edit."""
    return copied(bundle, tmp_path / "own")


def lists(own):
    return json.loads((own / "manifest.json").read_text())


BAD = [
    "../outside", "/etc/passwd", "onnx/../../outside", "a\\b", "C:/x", "c:x", "a\0b", "", ".", "./x", "a//b", "a/", "nul",
    "onnx/COM1.txt", "x" * 600, "a/" * 20 + "a", "tab\tx", "-rf", "~/x", "a.", "a ", "x\u202ey", "a?b", "NUL.onnx",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_path_that_leads_out_is_refused_wherever_it_stands(name, fico, own):
    whole = lists(own)
    file = whole["files"]["config.json"]
    for change in (
        {"files": whole["files"] | {name: file}},
        {"graphs__vision_encoder__file": name},
        {"embedding": {"file": name, "offset": 0, "dtype": "float32", "shape": [1, 1]}},
    ):
        edit_json(own / "manifest.json", **{"files": whole["files"]} | change)
        fico("inspect", own).refuses("manifest.json is damaged", "export or copy the bundle again")
        edit_json(own / "manifest.json", **{key.split("__")[0]: whole[key.split("__")[0]] for key in change})


@pytest.mark.parametrize(
    "name", ["model (1).safetensors", "onnx/ü.onnx_data", ".hidden", "a-b_c.d+e", "日本/語"]
)
def test_a_path_that_is_only_odd_is_taken(name):
    assert bundle_path(name) == name


@pytest.mark.parametrize(
    "names",
    [
        ("a", "A"),
        ("straße", "STRASSE"),
        ("\u00e9", "e\u0301"),
        ("a", "a/b"),
        ("manifest.json",),
        ("trt/x/build.json",),
    ],
)
def test_files_that_collide_are_refused(names, fico, own):
    file = {"sha256": "0" * 64, "size": 1}
    edit_json(own / "manifest.json", files=lists(own)["files"] | dict.fromkeys(names, file))

    fico("inspect", own).refuses("manifest.json is damaged: files")


def test_times_outside_of_a_bundle_are_never_changed(fico, own, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes((own / "config.json").read_bytes())
    os.utime(outside, (1, 1))
    listed = lists(own)["files"]
    edit_json(own / "manifest.json", files=listed | {"../outside": listed["config.json"] | {"mtime_ns": 5}})
    fico("inspect", own, "--check").refuses("leads out")
    (own / "config.json").unlink()
    (own / "config.json").symlink_to(outside)
    edit_json(own / "manifest.json", files=listed | {"config.json": listed["config.json"] | {"mtime_ns": 5}})
    for command in (["inspect", own, "--check"], ["run", own, *RUN]):
        fico(*command).refuses("config.json is a link that leads out of the bundle", f"cp -rL {own}")

    assert outside.stat().st_mtime_ns == 10**9
    subprocess.run(["cp", "-rL", own, f"{own}-copy"], check=True)
    assert fico("inspect", f"{own}-copy", "--check").code == 0


def test_a_folder_of_a_bundle_that_is_a_link_out_of_it_is_refused(fico, own, tmp_path):
    (own / "onnx").rename(tmp_path / "elsewhere")
    (own / "onnx").symlink_to(tmp_path / "elsewhere")

    fico("run", own, *RUN).refuses("is a link that leads out of the bundle", "cp -rL")
    (own / "onnx").unlink()
    (tmp_path / "elsewhere").rename(own / "kept")
    (own / "onnx").symlink_to("kept")
    assert fico("run", own, *RUN).code == 0


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "config.json"]
)
def test_a_file_that_is_read_by_name_must_be_listed(name, fico, own):
    """The template among them: edited, it ran, and its hash was said to match."""
    edit_json(own / "manifest.json", files={k: v for k, v in lists(own)["files"].items() if k != name})
    (own / name).write_text((own / name).read_text() + " ")

    for command in (["run", own, *RUN], ["inspect", own, "--check"], ["verify", own]):
        fico(*command).refuses(f"lists no {name!r} with its hash", "added or edited after the export")


@pytest.mark.parametrize("name", [name for name in READ_BY_NAME if name != "chat_template.jinja"])
def test_a_file_that_would_be_read_by_name_may_not_be_added(name, fico, own):
    listed = lists(own)["files"]
    if name in listed:
        edit_json(own / "manifest.json", files={k: v for k, v in listed.items() if k != name})
    (own / name).write_text("{}")

    fico("run", own, *RUN).refuses(f"lists no {name!r} with its hash")


def test_a_bundle_without_what_is_always_read_is_refused(fico, own):
    edit_json(
        own / "manifest.json", files={k: v for k, v in lists(own)["files"].items() if k != "tokenizer.json"}
    )
    (own / "tokenizer.json").unlink()

    fico("run", own, *RUN).refuses("lists no 'tokenizer.json' with its hash")


def test_files_of_the_users_own_do_not_stop_a_run_and_are_named(fico, own):
    (own / "README.md").touch()
    (own / "onnx" / "notes\x1b[31m.txt").touch()
    (own / "profile.json").touch()

    assert fico("run", own, *RUN).code == 0
    said = fico("inspect", own, "--check")
    assert "unlisted   'README.md'" in said.out
    assert "\x1b" not in said.out
    assert fico("inspect", own, "--check", "--json").json["unlisted"] == [
        "README.md",
        "onnx/notes\x1b[31m.txt",
    ]
    assert fico("inspect", own, "--json").json["unlisted"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder__layers": 10**9}, ["decoder.layers"]),
        ({"decoder__layers": 5}, ["contradicts itself", "decoder"]),
        ({"decoder__layers": -1}, ["decoder.layers"]),
        ({"decoder__layers": 2.0}, ["decoder.layers"]),
        ({"decoder__layers": True}, ["decoder.layers"]),
        ({"decoder__kv_heads": 7}, ["contradicts itself", "key-value heads"]),
        ({"decoder__head_dim": 3}, ["contradicts itself", "key-value heads"]),
        ({"decoder__hidden_size": 31}, ["contradicts itself", "31"]),
        ({"reduction__keep": 65}, ["contradicts itself", "65"]),
        ({"reduction__keep": 0}, ["reduction.keep"]),
        ({"reduction__handed_over": 17}, ["contradicts itself", "17"]),
        ({"reduction__visual_tokens": 63}, ["contradicts itself", "the profile square", "16 of 63"]),
        ({"profiles__0__token_grid": [0, 8]}, ["profiles.0.token_grid"]),
        ({"profiles__0__token_grid": [8]}, ["profiles.0.token_grid"]),
        ({"profiles__0__token_grid": [8, 9]}, ["contradicts itself", "64 visual tokens", "8×9"]),
        ({"profiles__0__patch_size": 15}, ["contradicts itself", "15 px in 112 px"]),
        ({"profiles__0__tiles": 10**9}, ["profiles.0.tiles"]),
        ({"profiles__0__token_grid": [30000, 60000]}, ["contradicts itself", "30000×60000"]),
        ({"profiles__0__visual_tokens": 10**9}, ["profiles.0.visual_tokens"]),
        ({"profiles__0__handed_over": 65}, ["contradicts itself", "65"]),
        ({"layout__axes": 3}, ["contradicts itself", "position_ids"]),
        ({"profiles__0__tiles": 2}, ["contradicts itself"]),
        ({"profiles__0__graph": "embed_tokens"}, ["contradicts itself", "which is no vision graph"]),
        ({"profiles": []}, ["profiles"]),
        ({"layout__rule": "../../evil"}, ["layout.rule"]),
        ({"layout__numbers": {"newline": -1}}, ["layout.numbers.newline"]),
        ({"layout__axes": 10**6}, ["layout.axes"]),
        ({"reduction__cached": []}, ["contradicts itself", "reduction.cached"]),
        ({"reduction__cached": [10**6, 1]}, ["contradicts itself", "reduction.cached"]),
        ({"profiles__0__input_shape": [1, 3, 10**10, 112]}, ["profiles.0.input_shape"]),
        ({"profiles__0__input_shape": [1, 3, 131, 131]}, ["contradicts itself", "pixel_values"]),
        ({"tokens__eos_ids": [-1]}, ["tokens.eos_ids"]),
        ({"tokens__image_id": "5"}, ["tokens.image_id"]),
        ({"precision": "int4"}, ["contradicts itself", "int4"]),
        ({"embedding__offset": 10**6}, ["contradicts itself", "the embeddings end at byte"]),
        ({"embedding__offset": -8}, ["embedding.offset"]),
        ({"embedding__shape": [2**31 - 1, 2**31 - 1]}, ["contradicts itself", "channels"]),
        ({"embedding__dtype": "object"}, ["embedding.dtype"]),
        ({"name": "\x1b[2Jevil"}, ["name", "control character"]),
        ({"name": "x" * 10_000}, ["name"]),
        ({"created": "yesterday"}, ["created"]),
        ({"created": "0001-01-01T00:00:00+00:00"}, ["created"]),
        ({"files__config.json__size": -1}, ["files"]),
        ({"files__config.json__size": 2**63}, ["files"]),
        ({"files__config.json__sha256": "no"}, ["files"]),
        ({"files__config.json__mtime_ns": 2**63 - 1}, ["files"]),
        ({"graphs__vision_encoder__inputs": []}, ["contradicts itself", "has no pixel_values"]),
        ({"graphs__decoder_model_merged__inputs": []}, ["contradicts itself", "has no inputs_embeds"]),
    ],
)
def test_numbers_and_shapes_that_cannot_be_are_named(change, words, fico, own):
    edit_json(own / "manifest.json", **change)

    for command in (
        ["run", own, *RUN],
        ["inspect", own],
        ["build", own, "--emit-trtexec", "--target", "trt10.3"],
    ):
        fico(*command).refuses("manifest.json", *words)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a b", "$(id)", "-x", "", "a;b", "é"])
def test_names_of_graphs_and_tensors_are_names(name, fico, own):
    graphs = lists(own)["graphs"]
    edit_json(own / "manifest.json", graphs={**graphs, name: graphs["vision_encoder"]})
    fico("build", own, "--emit-trtexec").refuses("manifest.json is damaged: graphs")
    if name == "a/b":
        return
    graphs["vision_encoder"]["inputs"][0]["name"] = name
    edit_json(own / "manifest.json", graphs=graphs)
    fico("build", own, "--emit-trtexec").refuses("manifest.json is damaged: graphs.vision_encoder.inputs")


def graph_with(location, split=False):
    """A model whose one initializer lies at `location`."""
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    node = (
        helper.make_node("Constant", [], ["c"], value=tensor)
        if split
        else helper.make_node("Identity", ["w"], ["y"])
    )
    inner = helper.make_graph([node], "g", [], [], [] if split else [tensor])
    if split:
        branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([branch], "g", [], [])
    return helper.make_model(inner).SerializeToString()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "location", ["../../secret", "/etc/passwd", "decoder_model_merged.onnx_data2", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_of_a_graph_must_be_files_of_the_bundle(location, inside, fico, own):
    content = graph_with(location, inside)
    (own / "onnx/vision_encoder.onnx").write_bytes(content)
    (own / "onnx/decoder_model_merged.onnx_data2").write_bytes(b"\0" * 16)
    entry = {"sha256": sha256(content).hexdigest(), "size": len(content)}
    edit_json(own / "manifest.json", files=lists(own)["files"] | {"onnx/vision_encoder.onnx": entry})

    for command in (["run", own, *RUN], ["inspect", own, "--check"]):
        fico(*command).refuses("with its hash", "weights of onnx/vision_encoder.onnx")


def test_no_spelling_of_a_graph_hides_where_its_weights_lie(tmp_path):
    """Protobuf lets fields come in any order, twice, and with numbers longer than they need be."""
    field = lambda number, content: bytes([number << 3 | 2, len(content) | 0x80, 0x00]) + content  # noqa: E731
    pair = field(2, b"../secret") + b"\x18\x05" + field(1, b"other") + field(1, b"location")
    model = b"\x08\x0a" + field(7, field(5, b"")) + field(7, field(5, field(13, pair)))
    (tmp_path / "g.onnx").write_bytes(model)
    assert external_files(tmp_path / "g.onnx") == {"../secret"}
    # Parsers cut the tag to 32 bits: this is field 7 to them.
    (tmp_path / "g.onnx").write_bytes(b"\xba\x80\x80\x80\x10" + model[model.index(b"\x3a") + 1 :])
    for content in (
        None,
        b"",
        b"\x3b",
        b"\x3a\xff",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\xff" * 20,
        b"text, no graph",
    ):
        if content is not None:
            (tmp_path / "g.onnx").write_bytes(content)
        with pytest.raises(BundleError, match="is no ONNX graph"):
            external_files(tmp_path / "g.onnx")
    deep = field(1, b"")  # a node with a graph in an attribute with a node …
    for _ in range(100):
        deep = _field(1, _field(5, _field(6, deep)))
    deep = _field(7, deep)
    (tmp_path / "g.onnx").write_bytes(deep)
    with pytest.raises(BundleError, match="nested deeper"):
        external_files(tmp_path / "g.onnx")


def _field(number, content):
    size, found = len(content), b""
    while size >= 0x80:
        found, size = found + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + found + bytes([size]) + content


def test_the_reader_finds_what_onnx_finds(bundle):
    """In a real bundle, against the package onnx."""
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    for graph in sorted((bundle / "onnx").glob("*.onnx")):
        model = onnx.load(graph, load_external_data=False)
        named = {
            e.value
            for t in _get_all_tensors(model)
            if uses_external_data(t)
            for e in t.external_data
            if e.key == "location"
        }
        assert external_files(graph) == named
        assert named
    files.check(bundle, Manifest.load(bundle), full=True)


def test_a_build_json_within_its_bounds_alone_is_read(fico, own):
    folder = own / "trt" / "rtx"
    folder.mkdir(parents=True)
    good = {
        "target": "rtx", "runtime": "tensorrt_rtx", "version": "1.7", "platform": "linux-x86_64",
        "compute_capabilities": ["8.9"], "options": {}, "engines": {}, "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    (folder / "build.json").write_text(json.dumps(good))
    assert fico("inspect", own).code == 0
    engine = {"sha256": "0" * 64, "size": 1, "sources": {}, "profiles": [], "seconds": 1.0, "peak_bytes": 1}
    for change in (
        {"engines": {"m": engine | {"file": "../../../x.engine"}}},
        {"engines": {"../m": engine | {"file": "m.engine"}}},
        {"engines": {"m": engine | {"file": "m.engine", "sources": {"../x": "0" * 64}}}},
        {"engines": {"m": engine | {"file": "m.engine", "profiles": [{"s": [-1, 2, 3]}]}}},
        {"version": "new"}, {"compute_capabilities": ["x"]}, {"schema_version": "1"}, {"gpu": "\x1b[2J"},
    ):  # fmt: skip
        (folder / "build.json").write_text(json.dumps(good | change))
        fico("inspect", own).refuses("build.json is damaged", "fico build")
    (folder / "build.json").write_text("[" * 100_000)
    fico("inspect", own).refuses("build.json is damaged", "fico build")
