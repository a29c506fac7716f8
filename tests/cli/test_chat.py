"""`fico chat`: a conversation through pipes and on a terminal, its commands, and Ctrl-C."""

import errno
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from cli_tools import command_line, copied, edit_json, started

import fico_export
from fico_export.runtime.backends.ort.decoder import Decoder

QUESTION, OTHER = "What is in the picture?", "And what is it made of?"
LIMIT = ["--max-new-tokens", 6]


@pytest.fixture
def bundle(make_bundle, tiny_checkpoint_v5):
    """A bundle whose answers differ from question to question."""
    return make_bundle(tiny_checkpoint_v5, 16, verify=False)


@pytest.fixture
def talk(fico, bundle, monkeypatch):
    """talk(*lines, options=…) → Outcome of a conversation through a pipe."""

    def run(*lines, options=LIMIT):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return fico("chat", bundle, *options)

    return run


@pytest.fixture
def expected(bundle):
    """expected((question, images)…, system=…) → answers of the same conversation in Python."""

    def answers(*turns, system=None):
        chat = fico_export.load(bundle).chat(system)
        return [chat.ask(question, images, max_new_tokens=6) for question, images in turns]

    return answers


@pytest.fixture
def files(photographs, tmp_path):
    """Two image files."""
    paths = [tmp_path / "first.png", tmp_path / "the second.png"]
    for path, picture in zip(paths, photographs, strict=False):
        picture.save(path)
    return paths


def texts(answers):
    return "".join(f"{answer.text}\n" for answer in answers)


def test_lines_from_a_pipe_are_answered_one_after_another_without_prompts(talk, expected):
    outcome = talk(QUESTION, "", OTHER)

    assert outcome.code == 0
    assert outcome.out == texts(expected((QUESTION, []), (OTHER, [])))
    assert "> " not in outcome.err


def test_images_are_shown_with_the_next_question(talk, expected, files):
    first, second = files
    outcome = talk(
        f"/image {first}", f"/image '{second}'", QUESTION, OTHER, f"/image {second}", "/image", OTHER
    )

    assert outcome.out == texts(expected((QUESTION, files), (OTHER, []), (OTHER, [second])))
    assert outcome.err.count("waiting for the next question") == 4


def test_the_option_names_images_of_the_first_question(talk, expected, files):
    outcome = talk(QUESTION, OTHER, options=[*LIMIT, "--image", files[0], "--image", files[1]])

    assert outcome.out == texts(expected((QUESTION, files), (OTHER, [])))


def test_an_image_option_that_cannot_be_used_ends_before_the_conversation(talk, tmp_path):
    talk(QUESTION, options=["--image", tmp_path / "gone.png"]).refuses("gone.png")


def test_json_is_one_object_a_turn_and_errors_are_objects_too(talk, expected, files):
    outcome = talk(
        f"/image {files[0]}", "What is <image>?", QUESTION, "/image gone.png", "/nothing", OTHER,
        options=[*LIMIT, "--json"],
    )  # fmt: skip
    objects = [json.loads(line) for line in outcome.out.splitlines()]
    want = expected((QUESTION, files[:1]), (OTHER, []))

    assert outcome.code == 0
    errors = [o for o in objects if "error" in o]
    assert [o.keys() for o in errors] == [{"error", "hint", "exit"}] * 3
    assert [o["exit"] for o in errors] == [2, 2, 2]
    assert "<image>" in errors[0]["error"]
    assert "gone.png" in errors[1]["error"]
    assert "/nothing" in errors[2]["error"]
    turns = [o for o in objects if "error" not in o]
    assert [o["token_ids"] for o in turns] == [answer.token_ids for answer in want]
    assert [o["question"] for o in turns] == [QUESTION, OTHER]
    assert [o["images"] for o in turns] == [[str(files[0])], []]
    assert turns[1]["cached_tokens"] > 16
    assert turns[0]["finish_reason"] == "length"


def test_a_turn_that_fails_is_told_and_the_conversation_goes_on(talk, expected, files, tmp_path):
    (tmp_path / "letter.png").write_text("no picture")
    outcome = talk(f"/image {files[0]}", f"/image {tmp_path / 'letter.png'}", "caf\udce9", QUESTION, OTHER)

    assert outcome.code == 0
    assert outcome.out == texts(expected((QUESTION, files[:1]), (OTHER, [])))
    assert outcome.err.count("error: ") == outcome.err.count("\nhint:  ") == 2
    assert "letter.png" in outcome.err
    assert "not Unicode" in outcome.err


def test_standard_input_is_no_image(talk):
    outcome = talk("/image -")

    assert outcome.code == 0
    assert "standard input is the conversation" in outcome.err


def test_reset_forgets_turns_and_images_that_wait(talk, expected, files):
    outcome = talk(QUESTION, f"/image {files[0]}", "/reset", OTHER)

    assert outcome.out == texts([*expected((QUESTION, [])), *expected((OTHER, []))])


def test_quit_leaves_what_follows_unasked(talk, expected):
    outcome = talk(QUESTION, "/quit", OTHER)

    assert outcome.code == 0
    assert outcome.out == texts(expected((QUESTION, [])))


def test_an_unknown_command_suggests_the_nearest_and_two_slashes_ask(talk, expected):
    outcome = talk("/rest", "//reset what?")

    assert "did you mean '/reset'?" in outcome.err
    assert outcome.out == texts(expected(("/reset what?", [])))


def test_help_lists_every_command(talk):
    outcome = talk("/help")

    assert outcome.out == ""
    for word in ("/image", "/reset", "/save", "/help", "/quit", "Ctrl-C"):
        assert word in outcome.err


def test_a_system_message_is_in_every_prompt(talk, expected):
    outcome = talk(QUESTION, "/reset", QUESTION, options=[*LIMIT, "--system", "One word."])

    assert outcome.out == texts(expected((QUESTION, []), system="One word.") * 2)
    assert outcome.out != texts(expected((QUESTION, [])) * 2)


def test_a_transcript_in_json_lines_reads_as_chat_messages(talk, expected, files, tmp_path):
    out = tmp_path / "talk.jsonl"
    outcome = talk(
        "Forgotten.", "/reset", f"/image {files[0]}", QUESTION, "What is <image>?", OTHER, f"/save {out}",
        options=[*LIMIT, "--system", "One word."],
    )  # fmt: skip
    want = expected((QUESTION, files[:1]), (OTHER, []), system="One word.")
    messages = [json.loads(line) for line in out.read_text().splitlines()]

    assert outcome.code == 0
    assert messages == [
        {"role": "system", "content": [text("One word.")]},
        {"role": "user", "content": [{"type": "image", "path": str(files[0])}, text(QUESTION)]},
        {"role": "assistant", "content": [text(want[0].text)]},
        {"role": "user", "content": [text(OTHER)]},
        {"role": "assistant", "content": [text(want[1].text)]},
    ]


def text(words):
    return {"type": "text", "text": words}


def test_a_transcript_in_markdown_shows_images_as_links(talk, files, tmp_path):
    out = tmp_path / "talk.md"
    talk(f"/image {files[1]}", QUESTION, f"/save {out}")
    written = out.read_text()

    assert (
        f"## User\n\n![image]({str(files[1]).replace(' ', '%20')})\n\n{QUESTION}\n\n## Assistant\n" in written
    )


@pytest.mark.parametrize("name", ["talk.jsonl", "talk.md"])
def test_a_transcript_goes_onto_nothing_that_is_there(talk, tmp_path, name):
    (tmp_path / name).write_text("thesis")
    outcome = talk(QUESTION, f"/save {tmp_path / name}", OTHER)

    assert outcome.code == 0
    assert outcome.out.count("\n") == 2
    assert "is there already" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "thesis"


def test_a_transcript_that_cannot_be_written_leaves_nothing(talk, tmp_path):
    outcome = talk(
        f"/save {tmp_path}/early.jsonl", QUESTION, f"/save {tmp_path}/no/folder.md", f"/save {tmp_path}/talk.txt",
        "/save", f"/save {tmp_path}/{'long' * 99}.md",
    )  # fmt: skip

    assert outcome.code == 0
    assert outcome.err.count("error: /save") == 5
    assert "nothing was said yet" in outcome.err
    assert f"/save {tmp_path}/talk.jsonl" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_disk_without_links_takes_a_transcript_too(talk, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", refused)
    talk(QUESTION, f"/save {tmp_path / 'talk.md'}", f"/save {tmp_path / 'talk.md'}")

    assert [path.name for path in tmp_path.iterdir()] == ["talk.md"]
    assert QUESTION in (tmp_path / "talk.md").read_text()


@pytest.fixture
def signalled(monkeypatch):
    """signalled(call, times): SIGINT comes so often within the nth step of the decoder, as it does when a person presses Ctrl-C."""

    def at(call, times):
        calls, step = SimpleNamespace(count=0), Decoder.step

        def interrupted(*given):
            calls.count += 1
            result = step(*given)
            for _ in range(times if calls.count == call else 0):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)  # the handler runs here
            return result

        monkeypatch.setattr(Decoder, "step", interrupted)

    return at


def test_an_answer_that_is_stopped_stays_as_far_as_it_was_shown(talk, bundle, signalled, tmp_path):
    signalled(3, 1)
    outcome = talk(QUESTION, OTHER, f"/save {tmp_path / 'talk.jsonl'}")
    shown, second = outcome.out.splitlines()
    said = [
        json.loads(line)["content"][0]["text"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()
    ]

    assert outcome.code == 0
    assert said == [QUESTION, shown, OTHER, second]
    assert "what was said stays" in outcome.err
    whole = fico_export.load(bundle).generate(QUESTION, max_new_tokens=6)
    assert whole.text.startswith(shown)
    assert shown != whole.text


def test_an_answer_that_is_stopped_before_its_first_word_leaves_nothing_but_its_images(
    talk, expected, files, signalled
):
    signalled(1, 1)
    outcome = talk(f"/image {files[0]}", OTHER, QUESTION)

    assert outcome.out == texts(expected((QUESTION, files[:1])))
    assert "stopped before a word was said" in outcome.err


def test_a_second_interruption_drops_the_turn(talk, expected, signalled):
    signalled(9, 2)
    outcome = talk(QUESTION, "Dropped?", OTHER)
    lines = outcome.out.splitlines()

    assert "interrupted: the conversation is as it was before" in outcome.err
    assert outcome.out.endswith(expected((QUESTION, []), (OTHER, []))[1].text + "\n")
    assert lines[0] + "\n" == texts(expected((QUESTION, [])))


@pytest.fixture
def endless(bundle, tmp_path):
    """A bundle whose answers go on for as long as there is room."""
    folder = copied(bundle, tmp_path / "endless")
    edit_json(folder / "manifest.json", tokens__eos_ids=[])
    return folder


def test_an_interrupted_process_goes_on_with_the_next_line(endless):
    process = started(command_line("fico", "chat", endless, "--max-new-tokens", 1900), stdin=subprocess.PIPE)
    process.stdin.write(f"{QUESTION}\n")
    process.stdin.flush()
    assert process.stdout.read(4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate("/save /dev/null\n", timeout=300)

    assert process.returncode == 0, err
    assert "what was said stays" in err
    assert "Traceback" not in err


def test_a_terminated_process_ends(endless):
    process = started(command_line("fico", "chat", endless, "--max-new-tokens", 1900), stdin=subprocess.PIPE)
    process.stdin.write(f"{QUESTION}\n")
    process.stdin.flush()
    assert process.stdout.read(4)
    process.terminate()
    _, err = process.communicate(timeout=300)

    assert process.returncode == 130
    assert "interrupted" in err


@pytest.fixture
def terminal(endless):
    """The conversation on a terminal of its own."""
    ours, theirs = pty.openpty()
    line = command_line("fico", "chat", endless, "--max-new-tokens", 1900)
    own_terminal = "import os, fcntl, termios, sys; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    line = [line[0], "-c", own_terminal, *line]
    process = started(
        line, stdin=theirs, stdout=theirs, stderr=theirs, text=False, env=os.environ | {"TERM": "dumb"}
    )
    os.close(theirs)
    yield Terminal(ours, process)
    process.kill()
    process.wait()
    os.close(ours)


class Terminal:
    """Types and reads as a person does."""

    def __init__(self, file, process):
        self._file, self.process, self.shown = file, process, ""

    def types(self, text):
        os.write(self._file, text.encode())

    def interrupts_until(self, pattern):
        """Press Ctrl-C until it is heeded: readline misses one that comes between its prompt and its wait for a key."""
        for _ in range(60):
            self.types("\x03")
            if self.comes(pattern, 5):
                break
        self.shows(pattern)

    def comes(self, pattern, seconds):
        """Whether this comes in time."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown) and (left := end - time.monotonic()) > 0:
            if select.select([self._file], [], [], left)[0]:
                self.shown += os.read(self._file, 4096).decode(errors="replace")
        return bool(re.search(pattern, self.shown))

    def shows(self, pattern):
        """Wait until what came since the last call has this in it; return all that came."""
        assert self.comes(pattern, 300), self.shown
        found, self.shown = self.shown, ""
        return found


def test_on_a_terminal_control_c_stops_an_answer_and_control_d_leaves(terminal):
    terminal.shows("/help lists the commands.*\r\n> $")
    terminal.interrupts_until("Ctrl-D or /quit leaves\r\n> ")  # at the prompt it is no way out
    terminal.types(f"{QUESTION}\r")
    terminal.shows(re.escape(QUESTION) + r"\r\n.")
    terminal.types("\x03")
    terminal.shows(r"\[stopped; what was said stays in the conversation\]\r\n> ")
    terminal.types("/image gone.png\r")
    terminal.shows(r"error: .*gone\.png(.|\s)*hint:  (.|\s)*> ")
    terminal.types(f"{OTHER}\r")
    terminal.shows(re.escape(OTHER) + r"\r\n.")
    terminal.types("\x03")
    terminal.shows(r"\[stopped; (.|\s)*> ")
    terminal.types("\x04")

    assert terminal.process.wait(timeout=60) == 0
