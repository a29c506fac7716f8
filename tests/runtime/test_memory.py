"""What a bundle needs is compared with what the machine has, and `low_memory` holds one graph at a time."""

import gc
import weakref

import pytest
from safetensors.torch import load_file

import fico_export
from fico_export.errors import ConfigError
from fico_export.runtime.backends.ort import decoder, graphs, memory
from fico_export.runtime.backends.ort.sessions import open_session

GIB = 2**30


@pytest.fixture
def bundle(make_bundle, tiny_checkpoint):
    return make_bundle(tiny_checkpoint, 16, precision="fp16")


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_bundle_that_does_not_fit_is_refused_before_it_is_loaded(bundle, monkeypatch, low_memory):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(graphs, "open_session", None)  # never reached

    with pytest.raises(ConfigError, match=r"widens FP16 .* 0\.0 GB are free") as refusal:
        fico_export.load(bundle, backend="ort-cpu", low_memory=low_memory)
    assert "--low-memory" not in refusal.value.fix  # which would not help


def test_low_memory_needs_room_for_the_largest_graph_alone(bundle, monkeypatch):
    known = fico_export.load(bundle).manifest.graphs
    # FP16 as stored and in FP32, both while a graph is loaded; and something beside.
    largest = 6 / 2 * max(known[name].weight_bytes for name in ("vision_encoder", "decoder_model_merged"))
    monkeypatch.setattr(memory, "available_bytes", lambda: int(1.2 * largest))

    assert fico_export.load(bundle, low_memory=True)
    with pytest.raises(ConfigError, match="give --low-memory"):
        fico_export.load(bundle)


def test_the_tower_of_an_int4_bundle_is_widened_too(make_bundle, tiny_checkpoint, monkeypatch):
    folder = make_bundle(tiny_checkpoint, 16, precision="int4", block=32, verify=False)
    known = fico_export.load(folder).manifest.graphs
    decoder, tower = (known[name].weight_bytes for name in ("decoder_model_merged", "vision_encoder"))
    monkeypatch.setattr(memory, "available_bytes", lambda: int(1.2 * (decoder + 6 / 2 * tower)))
    assert fico_export.load(folder)

    monkeypatch.setattr(memory, "available_bytes", lambda: decoder + 2 * tower)
    with pytest.raises(ConfigError, match="widens FP16"):
        fico_export.load(folder)


def test_low_memory_holds_one_graph_at_a_time_and_answers_alike(bundle, photographs, monkeypatch):
    expected = fico_export.load(bundle).generate("What is it?", photographs[:2], max_new_tokens=4)
    live, most, opened = weakref.WeakSet(), [], []

    def spied(path, *arguments):
        gc.collect()
        session = open_session(path, *arguments)
        live.add(session)
        opened.append(path.name)
        most.append(len(live))
        return session

    monkeypatch.setattr(graphs, "open_session", spied)
    monkeypatch.setattr(decoder, "open_session", spied)
    loaded = fico_export.load(bundle, low_memory=True)
    assert opened == []
    chat = loaded.chat()
    answers = [
        chat.ask("What is it?", photographs[:2], max_new_tokens=4),
        chat.ask("And?", photographs[2:3], max_new_tokens=2),
    ]

    assert answers[0].token_ids == expected.token_ids
    assert opened == ["vision_encoder_fp16.onnx", "decoder_model_merged_fp16.onnx"] * 2
    assert max(most) == 1


def test_embeddings_are_read_from_the_file_that_holds_them(make_bundle, tiny_checkpoint, monkeypatch):
    table = load_file(tiny_checkpoint / "model.safetensors")[
        "language_model.model.embed_tokens.weight"
    ].numpy()
    ids = [3, 500, 3, 0]
    for bundle, file in (
        (make_bundle(tiny_checkpoint, 16, precision="fp16"), "onnx/model.safetensors"),
        (make_bundle(tiny_checkpoint, 16), "onnx/embed_tokens.onnx_data"),
    ):
        loaded = fico_export.load(bundle)

        assert loaded.manifest.embedding.file == file
        assert (loaded.embed(ids) == table[ids]).all()
        assert (loaded.embed_by_graph(ids) == table[ids]).all()
        loaded.embed(ids)[:] = 0  # a copy
        assert (loaded.embed(ids) == table[ids]).all()


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 8 * GIB),
        ({"sys/fs/cgroup/a/b": ("max", 0, 0)}, 8 * GIB),
        ({"sys/fs/cgroup/a/b": (6 * GIB, 5 * GIB, 2 * GIB)}, 3 * GIB),
        ({"sys/fs/cgroup/a/b": (6 * GIB, 0, 0), "sys/fs/cgroup/a": (2 * GIB, GIB, 0)}, GIB),
        ({"sys/fs/cgroup/a/b": (GIB, 2 * GIB, 0)}, 0),
    ],
)
def test_what_is_free_is_the_least_that_machine_and_groups_allow(tmp_path, groups, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * 2**20} kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    for name, (limit, used, cached) in groups.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.current").write_text(f"{used}\n")
        (tmp_path / name / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")

    assert memory.available_bytes(tmp_path) == expected


def test_a_group_of_the_first_version_limits_too(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/job\n1:name=systemd:/x\n")
    group = tmp_path / "sys/fs/cgroup/memory/job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("5000\n")
    (group / "memory.usage_in_bytes").write_text("3000\n")
    (group / "memory.stat").write_text("total_inactive_file 1000\n")

    assert memory.available_bytes(tmp_path) == 3000
    assert memory.available_bytes(tmp_path / "nowhere") is None
