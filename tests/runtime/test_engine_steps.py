# ruff: noqa: N802, N815  # CUDA's names
"""How an engine's decoder is run: pieces, cache, CUDA graph, failures; on a CUDA and a TensorRT that are made up, in host memory.

The engine is a toy whose logits count and add up what it was shown, so that a plain sum over the tokens is the reference.
"""

import ctypes
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from stepping import append

from fico_export.bundle.manifest import Graph, TensorSpec
from fico_export.errors import ConfigError, EngineError, InputError
from fico_export.runtime.backends.base import Step
from fico_export.runtime.backends.trt import cuda
from fico_export.runtime.backends.trt.decoder import EngineDecoder
from fico_export.runtime.backends.trt.engine import Engine

LAYERS, HEADS, DIM, ROWS = 2, 2, 8, 6
WIDTH = HEADS * DIM
PAST = [f"past_key_values.{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
PRESENT = [name.replace("past_key_values", "present") for name in PAST]


class Cuda:
    """Of CUDA's runtime what the package calls: work is done at once, or noted while a stream is captured.

    Attributes:
        failing: name of a function → statuses of its next calls; None for success.
    """

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)  # fmt: skip
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.blocks, self.capturing, self.failing, self.launched = {}, None, {}, 0

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def function(*arguments):
            if (left := self.failing.get(name)) and (status := left.pop(0)):
                self.capturing = None  # ended all the same
                return (SimpleNamespace(name=status), None)
            return (
                SimpleNamespace(name="cudaSuccess"),
                getattr(self, f"_{name}", lambda *_: None)(*arguments),
            )

        return function

    def _cudaMalloc(self, size, flags=0):
        block = (ctypes.c_uint8 * (size + 256))(*b"\xff" * (size + 256))  # NaN, as memory may be
        address = -(-ctypes.addressof(block) // 256) * 256
        self.blocks[address] = block
        return address

    _cudaHostAlloc = _cudaMalloc

    def _cudaFree(self, address):
        del self.blocks[address]

    _cudaFreeHost = _cudaFree

    def _cudaStreamCreateWithFlags(self, flags):
        return 7

    def _cudaGetErrorString(self, status):
        return b"made up"

    def do(self, work):
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def _cudaMemcpyAsync(self, to, source, size, kind, stream):
        self.do(lambda: ctypes.memmove(to, source, size))

    def _cudaMemsetAsync(self, to, value, size, stream):
        self.do(lambda: ctypes.memset(to, value, size))

    def _cudaMemcpy2DAsync(self, to, to_pitch, source, source_pitch, width, height, kind, stream):
        assert width <= min(to_pitch, source_pitch)
        for i in range(height):
            ctypes.memmove(to + i * to_pitch, source + i * source_pitch, width)

    def _cudaStreamBeginCapture(self, stream, mode):
        assert self.capturing is None
        self.capturing = []

    def _cudaStreamEndCapture(self, stream):
        graph, self.capturing = self.capturing, None
        return graph

    def _cudaGraphInstantiate(self, graph, flags):
        return graph

    def _cudaGraphLaunch(self, graph, stream):
        self.launched += 1
        for work in graph:
            work()


class Context:
    """Of an execution context: the toy's forward."""

    def __init__(self, owner):
        self.owner, self.shapes, self.at = owner, {}, {}

    def set_device_memory(self, memory, size):
        pass

    def set_optimization_profile_async(self, profile, stream):
        if self.owner.no_profile:
            raise RuntimeError("Error in set optimization profile async.")  # as the bindings do
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        tokens = self.shapes["inputs_embeds"][1]
        return tuple(tokens if n == -1 else n for n in self.owner.tensors[name][0])

    def set_tensor_address(self, name, address):
        if self.owner.refused == name:
            return False
        self.at[name] = address
        return True

    def execute_async_v3(self, stream):
        at, shapes = dict(self.at), {name: self.get_tensor_shape(name) for name in self.owner.tensors}
        self.owner.cuda.do(lambda: self.owner.forward(at, shapes))
        return not self.owner.broken


class Raw:
    """Of an engine; legacy gives new rows, modern writes them into the cache."""

    device_memory_size_v2, num_optimization_profiles = 0, 1

    def __init__(self, made_up, *, in_place, batch=1):
        self.cuda, self.in_place, self.batch = made_up, in_place, batch
        self.no_profile, self.refused, self.broken = False, None, False
        cache, new = (batch, HEADS, ROWS, DIM), (batch, HEADS, ROWS if in_place else -1, DIM)
        self.tensors = {
            "inputs_embeds": ((batch, -1, WIDTH), "FLOAT"),
            "position_ids": ((batch, -1), "INT64"),
            "past_lengths": ((batch,), "INT64"),
            **dict.fromkeys(PAST, (cache, "FLOAT")),
            "logits": ((batch, 1, 2), "FLOAT"),
            **dict.fromkeys(PRESENT, (new, "FLOAT")),
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, i):
        return [*self.tensors][i]

    def get_tensor_mode(self, name):
        return "out" if name == "logits" or name in PRESENT else "in"

    def get_tensor_shape(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=self.tensors[name][1])

    def get_tensor_profile_shape(self, name, profile):
        return [tuple(n if m == -1 else m for m in self.tensors[name][0]) for n in (1, 1, 3)]

    def get_tensor_location(self, name):
        return "device"

    def create_execution_context(self, strategy):
        return Context(self)

    def forward(self, at, shapes):
        def view(name):
            dtype = np.float32 if self.tensors[name][1] == "FLOAT" else np.int64
            size = int(np.prod(shapes[name])) * dtype().itemsize
            return np.frombuffer((ctypes.c_uint8 * size).from_address(at[name]), dtype).reshape(shapes[name])

        embeds = view("inputs_embeds").reshape(self.batch, -1, HEADS, DIM)
        rows = embeds.swapaxes(1, 2) + view("position_ids")[:, None, :, None]
        for b in range(self.batch):
            filled, total = int(view("past_lengths")[b]), 0.0
            for i, (past, present) in enumerate(zip(PAST, PRESENT, strict=True)):
                old, new = view(past)[b], rows[b] * (i + 1)
                assert np.isfinite(old).all()  # what is not filled gets no weight, and must be a number
                total += old[:, :filled].sum() + new.sum()
                seen = filled + new.shape[1]
                assert seen <= ROWS
                if self.in_place:
                    assert at[past] == at[present]
                    view(present)[b, :, filled:seen] = new
                else:
                    view(present)[b] = new
            view("logits")[b] = [[total, seen]]


@pytest.fixture
def made_up(monkeypatch):
    fake = Cuda()
    monkeypatch.setattr(cuda, "bindings", lambda: fake)
    return fake


@pytest.fixture(params=[False, True], ids=["legacy", "modern"])
def raw(request, made_up):
    return Raw(made_up, in_place=request.param)


@pytest.fixture
def decoder(raw, tmp_path):
    return decoder_of(raw, tmp_path)


@pytest.fixture(params=[False, True], ids=["legacy", "modern"])
def pair(request, made_up, tmp_path):
    """A decoder of two sequences."""
    return decoder_of(Raw(made_up, in_place=request.param, batch=2), tmp_path)


def decoder_of(raw, tmp_path):
    plan = tmp_path / "decoder.engine"
    plan.write_bytes(b"plan")
    trt = SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="in"),
        TensorLocation=SimpleNamespace(HOST="host"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: raw)
    device = SimpleNamespace(
        backend="trt", trt=trt, runtime=runtime, stream=cuda.Stream(), said=lambda: "its words"
    )
    past = [TensorSpec(name=name, dtype="float32", shape=[raw.batch, HEADS, ROWS, DIM]) for name in PAST]
    graph = Graph(file="decoder.onnx", inputs=past, outputs=[], weight_bytes=0)
    manifest = SimpleNamespace(
        reduction=SimpleNamespace(in_decoder=False),
        decoder_name="decoder_model_merged",
        decoder=SimpleNamespace(layers=LAYERS, kv_heads=HEADS, head_dim=DIM),
        graph=lambda name: graph,
        cache_rows=ROWS,
        planes=0,
    )
    return EngineDecoder(manifest, lambda name: Engine(device, plan, "fico build"))


def embeds(count, seed=0):
    return np.random.default_rng(seed).integers(-9, 9, (count, WIDTH)).astype(np.float32)


def expected(tokens, positions):
    """The sum of all tokens with their positions, times 1, 2, … for each key and value; and how many there are."""
    total = sum(
        float(token.sum()) + position * WIDTH for token, position in zip(tokens, positions, strict=True)
    )
    return [total * sum(range(1, len(PAST) + 1)), len(tokens)]


def test_pieces_and_steps_see_all_that_came_before(decoder, made_up):
    tokens, cache = embeds(ROWS), decoder.new_cache()

    assert append(decoder, cache, tokens[:2], [0, 1]).tolist() == expected(tokens[:2], range(2))
    for i in range(2, ROWS):  # the first step is run, the second captured, and then launched
        assert append(decoder, cache, tokens[i : i + 1], [i]).tolist() == expected(
            tokens[: i + 1], range(i + 1)
        )
    assert made_up.launched == ROWS - 3
    with pytest.raises(InputError, match="6 tokens and 1 more"):
        append(decoder, cache, tokens[:1], [6])


def test_a_prompt_longer_than_a_profile_goes_in_pieces(decoder):
    tokens, cache = embeds(5), decoder.new_cache()

    assert append(decoder, cache, tokens, range(5)).tolist() == expected(tokens, range(5))
    cache.drop_last(3)
    assert append(decoder, cache, tokens[2:4], [2, 3]).tolist() == expected(tokens[:4], range(4))


def test_two_conversations_do_not_mix_and_a_buffer_is_clean_when_it_is_lent_again(decoder):
    tokens, caches = embeds(ROWS), [decoder.new_cache(), decoder.new_cache()]
    for i in range(ROWS):
        for cache, sign in zip(caches, (1, -1), strict=True):
            said = append(decoder, cache, sign * tokens[i : i + 1], [i])
            assert said.tolist() == expected(sign * tokens[: i + 1], range(i + 1))
    for spoilt in [cache.memory for cache in caches]:
        ctypes.memset(spoilt.address, 0xFF, spoilt.size)  # NaN, as of a conversation that overflowed
    caches.clear()
    del cache
    third = decoder.new_cache()
    for i in range(4):
        assert append(decoder, third, tokens[i : i + 1], [i]).tolist() == expected(
            tokens[: i + 1], range(i + 1)
        )


@pytest.mark.parametrize("tensor", ["logits", PRESENT[-1], PAST[1]])
def test_a_step_that_could_not_be_bound_is_bound_anew(tensor, decoder, raw):
    tokens, cache, other = embeds(3), decoder.new_cache(), decoder.new_cache()
    append(decoder, other, tokens[:1], [0])
    raw.refused = tensor
    with pytest.raises(EngineError, match=r"does not take the address.*its words"):
        append(decoder, cache, tokens[:2], [0, 1])
    assert cache.lengths == [0, 0]
    raw.refused = None

    assert append(decoder, cache, tokens[:2], [0, 1]).tolist() == expected(tokens[:2], range(2))
    assert append(decoder, other, tokens[1:2], [1]).tolist() == expected(tokens[:2], range(2))


def test_another_conversation_that_could_not_be_bound_leaves_the_first_alone(decoder, raw):
    tokens, cache, other = embeds(2), decoder.new_cache(), decoder.new_cache()
    append(decoder, cache, tokens[:1], [0])
    raw.refused = PAST[1]
    with pytest.raises(EngineError):
        append(decoder, other, tokens[:1], [0])
    raw.refused = None

    assert append(decoder, cache, tokens[1:], [1]).tolist() == expected(tokens, range(2))


@pytest.mark.parametrize("before", [0, 1, 4])
def test_memory_that_runs_out_while_shapes_change_is_asked_for_again(before, decoder, made_up):
    tokens, cache = embeds(3), decoder.new_cache()
    assert cache.memory is not None
    made_up.failing["cudaMalloc"] = [*[None] * before, "cudaErrorMemoryAllocation"]
    with pytest.raises(EngineError, match=r"cudaMalloc.*\n.*--low-memory"):
        append(decoder, cache, tokens, range(3))

    assert append(decoder, cache, tokens, range(3)).tolist() == expected(tokens, range(3))


@pytest.mark.parametrize("function", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_what_cannot_be_captured_is_run(function, decoder, made_up, caplog):
    tokens, cache = embeds(4), decoder.new_cache()
    made_up.failing[function] = ["cudaErrorMemoryAllocation"]
    for i in range(4):
        assert append(decoder, cache, tokens[i : i + 1], [i]).tolist() == expected(
            tokens[: i + 1], range(i + 1)
        )

    assert made_up.launched == 0
    assert caplog.text.count("no CUDA graph of the decode step") == 1


def test_a_capture_that_is_interrupted_is_ended(made_up):
    stream = cuda.Stream()

    def work():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.capture(work)
    assert made_up.capturing is None


def test_an_engine_that_fails_leaves_the_cache_as_it_was(decoder, raw):
    tokens, cache = embeds(5), decoder.new_cache()
    append(decoder, cache, tokens[:1], [0])
    raw.broken = True
    with pytest.raises(EngineError, match="decoder failed: its words"):
        append(decoder, cache, tokens[1:], range(1, 5))
    raw.broken = False

    assert cache.lengths == [1, 1]
    assert append(decoder, cache, tokens[1:], range(1, 5)).tolist() == expected(tokens, range(5))


def test_a_profile_that_cannot_be_taken_is_said(decoder, raw):
    raw.no_profile = True
    with pytest.raises(EngineError, match="cannot take profile 0: its words"):
        append(decoder, decoder.new_cache(), embeds(1), [0])


def step(cache, tokens, start):
    return Step(cache, tokens, np.arange(start, start + len(tokens))[None])


def test_two_sequences_run_together_and_a_third_in_a_run_of_its_own(pair, made_up):
    tokens, caches = [embeds(5, seed) for seed in range(3)], [pair.new_cache() for _ in range(3)]
    first = pair.step([step(c, t[: i + 1], 0) for i, (c, t) in enumerate(zip(caches, tokens, strict=True))])
    assert [f.tolist() for f in first] == [expected(t[: i + 1], range(i + 1)) for i, t in enumerate(tokens)]
    for n in range(2):
        said = pair.step([step(c, t[i + 1 + n][None], i + 1 + n) for i, (c, t) in enumerate(zip(caches, tokens, strict=True))])  # fmt: skip
        ends = [i + 2 + n for i in range(3)]
        assert [s.tolist() for s in said] == [
            expected(t[:e], range(e)) for t, e in zip(tokens, ends, strict=True)
        ]

    assert pair.max_batch == 2
    assert caches[0].memory is caches[1].memory
    assert caches[2].memory is not caches[0].memory
    assert made_up.launched > 0


def test_caches_of_two_pools_come_together(pair):
    tokens, caches = embeds(5), [pair.new_cache() for _ in range(4)]
    pair.step([step(c, tokens[:2], 0) for c in caches])
    left = caches[0], caches[3]
    del caches
    gc.collect()
    for n in (2, 3, 4):
        said = pair.step([step(c, tokens[n][None], n) for c in left])
        assert [s.tolist() for s in said] == [expected(tokens[: n + 1], range(n + 1))] * 2

    assert left[0].memory is left[1].memory


def test_a_full_cache_stays_whole_beside_another(pair):
    tokens, full, other = embeds(ROWS), pair.new_cache(), pair.new_cache()
    pair.step([step(full, tokens[:-1], 0)])
    pair.step([step(full, tokens[-1:], ROWS - 1)])
    for count in (1, 3):  # with and without room for what is written beside it
        pair.step([step(other, tokens[:count], 0)])
        other.drop_last(count)
    full.drop_last(1)

    (said,) = pair.step([step(full, tokens[-1:], ROWS - 1)])
    assert said.tolist() == expected(tokens, range(ROWS))


def test_a_slot_is_lent_again_as_new(pair):
    tokens, stays, leaves = embeds(4), pair.new_cache(), pair.new_cache()
    pair.step([step(stays, tokens[:1], 0), step(leaves, tokens[:2], 0)])
    (memory, size), slot = (leaves.memory, pair._layout.slot_bytes(ROWS)), leaves.slot
    for offset in pair._layout.offsets[:-1]:
        ctypes.memset(
            memory.address + offset + slot * size, 0xFF, size
        )  # NaN, as of a conversation that overflowed
    del leaves
    comes = pair.new_cache()
    said = pair.step([step(comes, tokens[:1], 0), step(stays, tokens[1:2], 1)])

    assert comes.slot == slot
    assert [s.tolist() for s in said] == [expected(tokens[:1], range(1)), expected(tokens[:2], range(2))]


def test_a_batch_that_fails_leaves_every_cache_as_it_was(pair):
    tokens, caches, raw = embeds(4), [pair.new_cache(), pair.new_cache()], pair._engine.raw
    pair.step([step(c, tokens[: i + 1], 0) for i, c in enumerate(caches)])
    raw.broken = True
    with pytest.raises(EngineError):
        pair.step([step(c, tokens[i + 1][None], i + 1) for i, c in enumerate(caches)])
    raw.broken = False

    assert [c.lengths for c in caches] == [[1, 1], [2, 2]]
    said = pair.step([step(c, tokens[i + 1][None], i + 1) for i, c in enumerate(caches)])
    assert [s.tolist() for s in said] == [expected(tokens[: i + 2], range(i + 2)) for i in range(2)]


def test_logits_after_every_token_are_refused(pair):
    with pytest.raises(ConfigError, match="after the last one alone"):
        pair.step([step(pair.new_cache(), embeds(2), 0)], rows="all")


def test_a_cache_keeps_no_engine_in_memory(made_up, tmp_path):
    """`--low-memory` drops the decoder between turns, and the conversation goes on."""
    decoder = decoder_of(Raw(made_up, in_place=True), tmp_path)
    cache, held = decoder.new_cache(), weakref.ref(decoder)
    decoder.step([step(cache, embeds(2), 0)])
    del decoder
    gc.collect()

    assert held() is None
    assert cache.lengths == [2, 2]
