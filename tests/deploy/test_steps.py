"""The steps on the other machine: their words, their results, and what a failure stops."""

import json

import pytest
from stub_bundles import write_stub

DOCTOR = {"ok": True, "findings": [{"what": "JetPack", "found": "6.2 (Jetson Linux 36.4.3): --target trt-10.3", "status": "ok", "fix": ""}]}  # fmt: skip
ALL = {
    "doctor": (0, json.dumps(DOCTOR), ""),
    "inspect": (0, '{"files": {"a": 1}}', ""),
    "build": (0, '{"target": "trt-10.3"}', "parsing\nbuilding 50 %\n"),
    "verify": (0, '{"passed": true, "checks": [1, 2]}', ""),
    "run": (0, 'Welcome to your board!\n{"text": "A red\\nstar.", "backend": "trt", "ttft_ms": 41.3}', ""),
    "profile": (0, '{"ttft_ms": 40}', ""),
}


@pytest.fixture
def deploy(fico, stub_fico, ssh_to_here, tmp_path):
    """deploy(verbs, *flags, target=…) → (Outcome, the words that the fico there was given)."""

    def run(verbs, *flags, target="trt-10.3"):
        bundle = write_stub(tmp_path / "bundle", target=target)
        there = ["--dir", tmp_path / "the board", "--fico", stub_fico(verbs)]
        outcome = fico("deploy", bundle, *ssh_to_here, *there, *flags)
        return outcome, (tmp_path / "words").read_text().splitlines()

    return run


def steps_of(outcome):
    return {o["step"]: o for o in outcome.json["outcomes"]}


def test_every_step_is_a_verb_with_its_words(deploy, tmp_path):
    there, asked = tmp_path / "the board", "[--prompt][What is in the picture?][--max-new-tokens][32]"
    outcome, words = deploy(
        ALL,
        "--checkpoint",
        "/models/it's",
        "--low-memory",
        "--backend",
        "trt",
        "--also",
        "profile=--runs 3",
        "--json",
    )

    assert words == [
        "[--version]",
        "[--help]",
        "[doctor][--json]",
        f"[inspect][{there}][--check][--json]",
        f"[build][{there}][--target][trt-10.3][--low-memory][--json]",
        f"[verify][{there}][--model][/models/it's][--json]",
        f"[run][{there}][--image][{there}/deploy/picture.png]{asked}[--backend][trt][--low-memory][--json]",
        f"[profile][{there}][--runs][3][--json]",
    ]
    assert all(o["status"] == "done" for o in outcome.json["outcomes"])
    assert (there / "deploy" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "building 50 %" in outcome.err
    assert "building 50 %" in (tmp_path / "bundle" / "deploy").glob("*/build.log").__next__().read_text()


def test_a_reader_gets_a_table(deploy):
    outcome, _ = deploy(ALL)

    lines = outcome.out.splitlines()
    assert "fico 9.9" in lines[0]
    assert any(line.startswith("build      done") and "engines for trt-10.3" in line for line in lines)
    assert any(line.startswith("verify     skipped") for line in lines)
    assert any(
        line.startswith("answer     done") and "“A red star.” on trt, first token 41 ms" in line
        for line in lines
    )


def test_a_verb_that_is_missing_there_is_said_and_passed_over(deploy):
    outcome, words = deploy({k: v for k, v in ALL.items() if k not in ("build", "profile")}, "--json")

    steps = steps_of(outcome)
    assert outcome.code == 0
    for verb in ("build", "profile"):
        assert steps[verb]["status"] == "skipped"
        assert steps[verb]["line"] == f"the fico there (9.9) has no `fico {verb}`"
    assert steps["answer"]["status"] == "done"
    assert not any(w.startswith("[build]") for w in words)


@pytest.mark.parametrize(
    ("own", "flags", "doctor", "target"),
    [
        ("trt-10.16", [], DOCTOR, "trt-10.16"),
        ("trt-10.3", ["--target", "rtx"], DOCTOR, "rtx"),
        ("portable", ["--device", "t5000"], DOCTOR, "trt-10.13][--device][t5000"),
        ("portable", [], DOCTOR, None),
        ("ort", [], {"ok": True, "findings": []}, None),
    ],
)
def test_engines_are_for_what_was_asked_or_what_the_bundle_is_for(own, flags, doctor, target, deploy):
    outcome, words = deploy(ALL | {"doctor": (0, json.dumps(doctor), "")}, *flags, "--json", target=own)

    build = steps_of(outcome)["build"]
    if target is None:
        assert build["status"] == "skipped"
        offered = "trt-10.3" if doctor is DOCTOR else "of `fico list targets`"
        assert build["line"].endswith(f"{own}, which has no engines: export it with --target {offered}")
    else:
        assert f"[--target][{target}]" in next(w for w in words if w.startswith("[build]"))


def test_a_step_that_fails_says_why_and_stops_the_rest(deploy):
    error = json.dumps({"error": "no kernel for TopK", "hint": "--target trt-10.16", "exit": 1})
    outcome, _ = deploy(ALL | {"build": (1, error, "trace\n")}, "--json")

    steps = steps_of(outcome)
    assert (outcome.code, outcome.json["passed"]) == (1, False)
    assert (steps["build"]["line"], steps["build"]["fix"]) == ("no kernel for TopK", "--target trt-10.16")
    assert steps["answer"]["status"] == steps["profile"]["status"] == "not reached"
    # Put right, only what was not done is done.
    steps = steps_of(deploy(ALL, "--json")[0])
    assert [steps[n]["status"] for n in ("inspect", "build", "answer")] == ["kept", "done", "done"]


def test_a_build_that_the_system_kills_is_told_of_memory(deploy):
    outcome, _ = deploy(ALL | {"build": (137, "", "")})

    assert outcome.code == 1
    assert "memory ran out" in outcome.out
    assert "--low-memory" in outcome.out


def test_what_doctor_finds_stops_nothing_but_does_not_pass(deploy):
    problem = {"ok": False, "findings": [{"what": "JetPack", "found": "5.1: no target", "status": "problem"}]}
    outcome, _ = deploy(ALL | {"doctor": (1, json.dumps(problem), "")}, "--json")

    steps = steps_of(outcome)
    assert outcome.code == 1
    assert (steps["doctor"]["status"], steps["doctor"]["line"]) == ("failed", "problem: JetPack")
    assert steps["answer"]["status"] == "done"


def test_a_command_that_says_no_json_is_judged_by_its_exit_code(deploy):
    outcome, _ = deploy(ALL | {"inspect": (3, "what?", "segmentation\nfault\n")}, "--json")

    assert steps_of(outcome)["inspect"]["line"] == "segmentation / fault"
