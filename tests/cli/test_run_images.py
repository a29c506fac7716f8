"""`fico run --image` from the shell: folders and batches, standard input, data URLs, addresses, and images of over 8 bits."""

import base64
import json
import os
import subprocess

import numpy as np
import pytest
from cli_tools import command_line
from PIL import Image

import fico_export
from fico_export.errors import ImageWarning

QUESTION = ("--prompt", "What is in the picture?", "--max-new-tokens", 4)


@pytest.fixture
def folder(tmp_path, photographs):
    """Three images, one of them damaged, one in a folder of its own, and what is no image."""
    made = tmp_path / "images"
    (made / "deeper").mkdir(parents=True)
    photographs[0].resize((90, 60)).save(made / "b.png")
    photographs[1].resize((90, 60)).save(made / "a.jpg")
    photographs[2].resize((90, 60)).save(made / "deeper" / "c.png")
    (made / "broken.png").write_bytes((made / "b.png").read_bytes()[:200])
    (made / "labels.json").write_text("{}")
    (made / ".hidden.png").write_bytes(b"")
    return made


@pytest.fixture
def depth(tmp_path):
    """A depth image of 16 bits."""
    path = tmp_path / "depth.png"
    Image.fromarray(np.linspace(400, 2000, 5000).astype(np.uint16).reshape(50, 100)).save(path)
    return path


def lines(outcome):
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_each_image_of_a_folder_gets_a_line_and_one_that_cannot_be_used_does_not_end_it(fico, bundle, folder):
    outcome = fico("run", bundle, "--image", folder, *QUESTION, "--each")
    found = lines(outcome)

    assert outcome.code == 1
    assert [line["image"] for line in found] == [str(folder / n) for n in ("a.jpg", "b.png", "broken.png")]
    assert found[2].keys() == {"image", "error", "hint"}
    assert "cut short" in found[2]["error"]
    assert "1 of 3 images could not be used" in outcome.err
    assert "labels.json" in outcome.err
    vlm = fico_export.load(bundle)
    for line in found[:2]:
        alone = vlm.generate(QUESTION[1], line["image"], max_new_tokens=4)
        assert line["text"] == alone.text
        assert line["token_ids"] == alone.token_ids


def test_a_batch_without_a_fault_ends_well_and_is_the_same_with_json(fico, bundle, folder):
    (folder / "broken.png").unlink()
    plain, as_json = (
        fico("run", bundle, "--image", folder, *QUESTION, "--each", *more) for more in ((), ("--json",))
    )

    assert plain.code == as_json.code == 0
    assert [line["token_ids"] for line in lines(plain)] == [line["token_ids"] for line in lines(as_json)]


def test_folders_in_a_folder_are_read_when_asked_for(fico, bundle, folder):
    found = lines(fico("run", bundle, "--image", folder, *QUESTION, "--each", "--recursive"))

    assert [line["image"] for line in found][-1] == str(folder / "deeper" / "c.png")
    assert len(found) == 4


def test_several_images_are_a_batch_in_the_order_given_and_follow_up_turns_are_each_ones_own(
    fico, bundle, folder
):
    given = [folder / "b.png", folder / "gone.png", folder / "a.jpg"]
    arguments = [word for path in given for word in ("--image", path)]
    found = lines(fico("run", bundle, *arguments, *QUESTION, "--prompt", "And where?", "--each"))

    assert [line["image"] for line in found] == [str(path) for path in given]
    assert "no file" in found[1]["error"]
    assert len(found[0]["turns"]) == len(found[2]["turns"]) == 2


def test_a_folder_without_each_names_it(fico, bundle, folder):
    fico("run", bundle, "--image", folder, *QUESTION).refuses("is a folder", "--each")


def test_a_batch_of_nothing_is_refused(fico, bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    fico("run", bundle, "--image", tmp_path / "empty", *QUESTION, "--each").refuses(
        "has no image", "--recursive"
    )
    fico("run", bundle, *QUESTION, "--each").refuses("--image FOLDER")
    fico("run", bundle, *QUESTION, "--recursive").refuses("add --each")


def test_a_question_that_no_image_can_be_asked_is_refused_once(fico, bundle, folder):
    fico("run", bundle, "--image", folder, "--prompt", "<image> or <image>", "--each").refuses("places")
    fico("run", bundle, "--image", folder, *QUESTION[:2], "--max-new-tokens", 0, "--each").refuses(
        "max_new_tokens"
    )


def test_an_image_of_16_bits_is_scaled_with_one_warning_or_by_the_range_given(fico, bundle, depth):
    warned = fico("run", bundle, "--image", depth, "--image", depth, *QUESTION, "--json")
    ranged = fico("run", bundle, "--image", depth, "--image-range", "0,8000", *QUESTION, "--json")

    assert warned.code == ranged.code == 0
    assert warned.err.count("warning:") == 1
    assert "from 400 to 2000" in warned.err
    assert "--image-range" in warned.err
    assert "warning:" not in ranged.err
    values = np.asarray(Image.open(depth)).astype(float)
    grey = np.rint(values / 8000 * 255).astype(np.uint8)
    expected = fico_export.load(bundle).generate(QUESTION[1], np.dstack([grey] * 3), max_new_tokens=4)
    assert ranged.json["token_ids"] == expected.token_ids


def test_a_batch_keeps_each_images_warning_in_its_line(fico, bundle, depth):
    outcome = fico("run", bundle, "--image", depth, "--image", depth, *QUESTION, "--each")

    assert outcome.err.count("warning:") == 1
    assert all("from 400 to 2000" in line["warnings"][0] for line in lines(outcome))


@pytest.mark.parametrize("text", ["5", "9,3", "a,b", "0,nan", "1,2,3", ""])
def test_a_range_that_is_none_is_named(fico, bundle, depth, text):
    fico("run", bundle, "--image", depth, f"--image-range={text}", *QUESTION).refuses(
        repr(text), "--image-range 0,4096"
    )


def test_a_range_may_begin_below_zero(fico, bundle, depth):
    assert fico("run", bundle, "--image", depth, "--image-range", "-10,4000", *QUESTION).code == 0


def test_an_image_comes_from_standard_input(bundle, folder):
    line = command_line("fico", "run", bundle, "--image", "-", *QUESTION, "--json")
    with (folder / "b.png").open("rb") as image:
        done = subprocess.run(line, stdin=image, capture_output=True, check=True)
    alone = fico_export.load(bundle).generate(QUESTION[1], folder / "b.png", max_new_tokens=4)

    assert json.loads(done.stdout)["token_ids"] == alone.token_ids


def test_endless_standard_input_is_refused(bundle):
    line = command_line("fico", "run", bundle, "--image", "-", *QUESTION)
    with open("/dev/zero", "rb") as endless:  # noqa: PTH123
        done = subprocess.run(line, stdin=endless, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 2
    assert "over 400,000,000 bytes" in done.stderr


def test_standard_input_that_is_a_terminal_or_given_twice_is_refused(bundle):
    terminal, other = os.openpty()
    for names in (["-"], ["-", "-"]):
        words = [word for name in names for word in ("--image", name)]
        done = subprocess.run(
            command_line("fico", "run", bundle, *words, *QUESTION),
            stdin=other, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 2
        assert "--image -" in done.stderr
    os.close(terminal)
    os.close(other)


def test_a_data_url_is_an_image_and_is_never_printed_whole(fico, bundle, folder):
    content = (folder / "b.png").read_bytes()
    whole, damaged = (
        "data:image/png;base64," + base64.b64encode(part).decode()
        for part in (content, content[: len(content) // 2])
    )
    assert fico("run", bundle, "--image", whole, *QUESTION).code == 0
    refused = fico("run", bundle, "--image", damaged, *QUESTION)
    refused.refuses("cut short", "data:image/png;base64,")
    each = fico("run", bundle, "--image", whole, "--image", damaged, *QUESTION, "--each")
    for said in (refused.err, each.out, each.err):
        assert damaged[80:160] not in said


def test_an_address_keeps_its_slashes(fico, bundle):
    address = "https://example.org/a/cat.png"
    for verb in (["run", bundle, *QUESTION], ["show", bundle, "--out", "kept.png"]):
        fico(*verb, "--image", address).refuses(repr(address), f"curl -LO {address}")


def test_progress_of_a_batch_goes_to_a_terminal_and_its_lines_to_the_file(bundle, folder, tmp_path):
    terminal, other = os.openpty()
    line = command_line("fico", "run", bundle, "--image", folder, *QUESTION, "--each")
    with (tmp_path / "answers.jsonl").open("wb") as answers:
        process = subprocess.Popen(line, stdout=answers, stderr=other, env=os.environ | {"TERM": "xterm"})
        os.close(other)
        seen = b""
        try:
            while part := os.read(terminal, 4096):
                seen += part
        except OSError:  # the end of a terminal whose other side is closed
            pass
        assert process.wait() == 1
    os.close(terminal)

    assert len([json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]) == 3
    assert b"3 images" in seen
    assert b"token_ids" not in seen


@pytest.fixture(scope="module")
def vlm(make_bundle, tiny_checkpoint):
    return fico_export.load(make_bundle(tiny_checkpoint, 16))


def test_an_image_alone_is_taken_as_one_by_every_method(vlm, tmp_path, photographs):
    path = tmp_path / "a.png"
    photographs[0].save(path)
    expected = vlm.generate("What?", [path], max_new_tokens=3).token_ids

    for alone in (
        str(path),
        path,
        path.read_bytes(),
        photographs[0],
        np.asarray(photographs[0]),
        vlm.encode_image(path),
    ):
        assert vlm.generate("What?", alone, max_new_tokens=3).token_ids == expected
        assert vlm.chat().ask("What?", images=alone, max_new_tokens=3).token_ids == expected
        for streams in (vlm.stream, vlm.chat().stream):
            stream = streams("What?", images=alone, max_new_tokens=3)
            assert "".join(stream) == stream.answer.text
            assert stream.answer.token_ids == expected


def test_a_range_is_taken_by_every_method(vlm, depth):
    grey = np.rint((np.asarray(Image.open(depth)).astype(float) - 400) / 3600 * 255).astype(np.uint8)
    expected = vlm.generate("What?", np.dstack([grey] * 3), max_new_tokens=3).token_ids

    options = {"image_range": (400, 4000), "max_new_tokens": 3}
    assert vlm.generate("What?", depth, **options).token_ids == expected
    assert vlm.chat().ask("What?", depth, **options).token_ids == expected
    encoded = vlm.encode_image(depth, image_range=(400, 4000))
    assert vlm.generate("What?", encoded, max_new_tokens=3).token_ids == expected
    with pytest.warns(ImageWarning, match="from 400 to 2000"):
        vlm.generate("What?", depth, max_new_tokens=3)
