"""Questions that `fico run` refuses: nothing on stdout but, where asked for, one JSON object."""

import struct
import zlib

import pytest

from fico_export.devices import gpu


@pytest.fixture
def ask(fico, bundle):
    """ask(*arguments) → Outcome of a question, asked in both forms, refused alike."""

    def run(*arguments, words, prompt="hi"):
        question = ["run", bundle, "--prompt", prompt, "--max-new-tokens", 2, *arguments]
        outcome = fico(*question)
        outcome.refuses(*words)
        answer = fico(*question, "--json")
        assert answer.code == 2
        assert answer.json.keys() == {"error", "hint", "exit"}
        assert answer.json["exit"] == 2
        assert f"error: {answer.json['error']}\nhint:  {answer.json['hint']}\n" == outcome.err

    return run


def test_a_picture_that_is_not_there_is_named(ask, tmp_path):
    ask("--image", tmp_path / "gone.png", words=["there is no file", "gone.png", "give a path"])


def test_a_folder_given_as_picture_is_named(ask, tmp_path):
    ask("--image", tmp_path, words=["is a folder", "one image file"])


def test_a_picture_without_bytes_is_named(ask, tmp_path):
    (tmp_path / "empty.png").touch()

    ask("--image", tmp_path / "empty.png", words=["empty.png", "has no bytes", "copy or download"])


def test_a_file_that_is_no_picture_is_named(ask, tmp_path):
    (tmp_path / "letter.png").write_text("Dear all, this is no image.")

    ask("--image", tmp_path / "letter.png", words=["letter.png", "is not an image", "PNG or JPEG"])


def test_a_picture_of_fifty_thousand_pixels_squared_is_refused_by_its_header(ask, tmp_path):
    (tmp_path / "bomb.png").write_bytes(_png(50_000, 50_000))

    ask("--image", tmp_path / "bomb.png", words=["bomb.png", "200,000,000 pixels", "scale the image down"])


def test_a_picture_that_is_cut_short_is_named(ask, tmp_path):
    (tmp_path / "half.png").write_bytes(_png(300, 300))

    ask("--image", tmp_path / "half.png", words=["half.png", "cut short or damaged"])


def test_one_bad_picture_among_good_ones_stops_the_question(ask, tmp_path, photographs):
    photographs[0].save(tmp_path / "good.png")

    ask("--image", tmp_path / "good.png", "--image", tmp_path / "gone.png", words=["gone.png"])


def test_a_prompt_longer_than_the_context_names_both_numbers(ask):
    ask(words=["positions", "the model has 2048", "shorten the prompt"], prompt="word " * 2000)


def test_a_prompt_with_the_picture_marker_is_refused(ask):
    ask(words=["'<image>'", "--image"], prompt="what is in <image>?")


def test_a_prompt_that_is_not_unicode_is_refused(ask):
    ask(words=["not Unicode", "UTF-8"], prompt="caf\udce9")


def test_an_unknown_backend_suggests_the_nearest(ask):
    ask("--backend", "ort-cpux", words=["did you mean 'ort-cpu'?", "auto", "ort-cuda"])


def test_a_gpu_backend_without_a_gpu_is_refused(ask, monkeypatch):
    monkeypatch.setattr(gpu, "count", lambda: 0)

    ask("--backend", "ort-cuda", words=["ort-cuda cannot run", "--backend ort-cpu", "fico doctor"])


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--temperature", "-1", "temperature is -1.0"),
        ("--temperature", "nan", "temperature is nan"),
        ("--temperature", "warm", "--temperature"),
        ("--top-p", "0", "top_p is 0.0"),
        ("--top-p", "1.5", "top_p is 1.5"),
        ("--top-k", "-1", "top_k is -1"),
        ("--seed", "-1", "seed is -1"),
        ("--max-new-tokens", "0", "max_new_tokens is 0"),
        ("--max-new-tokens", "2.5", "--max-new-tokens"),
        ("--threads", "-1", "threads is -1"),
        ("--stop", "", "stop strings"),
    ],
)
def test_a_value_out_of_range_is_named(ask, option, value, word):
    ask(option, value, words=[word])


def test_a_question_is_needed(fico, bundle):
    fico("run", bundle).refuses("--prompt", "fico run --help")
    assert fico("run", bundle, "--json").json["exit"] == 2


def test_a_later_turn_that_fails_prints_one_json_object_all_the_same(fico, bundle):
    outcome = fico("run", bundle, "--prompt", "hi", "--prompt", "<image>", "--max-new-tokens", 2, "--json")

    assert outcome.code == 2
    assert outcome.json.keys() == {"error", "hint", "exit"}


def _png(width, height):
    """A PNG that says it is so large and holds almost nothing."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
