"""What the commands print when all is well, and what they import to do it."""

import json
import sys

import pytest
import typer
from cli_tools import command_line, in_own_process, in_this_process

from fico_export import __version__, models, reducers
from fico_export.bundle.manifest import Manifest
from fico_export.cli.main import app, export_app
from fico_export.devices import catalog, targets
from fico_export.parity import verify
from fico_export.runtime import backends
from fico_export.runtime.backends.ort import graphs

VERBS = [command.name for command in app.registered_commands]
KINDS = {
    "models": lambda: {models.DEMO, *models.aliases()},
    "methods": lambda: set(reducers.names()),
    "targets": lambda: set(targets.names()),
    "devices": lambda: set(catalog.load()),
    "backends": lambda: set(backends.names()),
}
# What a line begins with that needs the one above to be understood.
FRAGMENTS = {
    "Of",
    "As",
    "Likewise",
    "Most",
    "Or",
    "To",
    "With",
    "For",
    "Also",
    "Instead",
    "Where",
    "What",
    "Default",
    "Only",
}
EXPORTERS = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors")
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXPORTERS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_all_that_is_known(fico, kind):
    plain, verbose = fico("list", kind), fico("list", kind, "--verbose")
    assert plain.code == verbose.code == 0
    for name in KINDS[kind]():
        assert f"{name} " in plain.out
        assert f"{name} " in verbose.out
    assert fico("list", kind, "--json").json[kind].keys() == KINDS[kind]()
    assert fico("list", kind, "--json", "--verbose").json[kind].keys() == KINDS[kind]()


def test_list_says_of_each_method_where_it_acts_and_what_can_be_set(fico):
    plain, verbose = (fico("list", "methods", *flag).out for flag in ([], ["--verbose"]))

    assert "--set lam=" not in plain
    assert "--set lam=" in verbose
    assert verbose.count("  site: ") == len(reducers.names())


def test_list_suggests_the_nearest_kind(fico):
    fico("list", "metods").refuses("unknown kind 'metods'", "did you mean 'methods'?", "backends")
    fico("list").refuses("fico list --help")


def test_an_unknown_verb_is_refused(fico):
    fico("exprot").refuses("exprot", "fico --help")


def test_doctor_looks_at_what_the_jobs_need(fico):
    report = fico("doctor", "--json").json

    assert report["ok"]
    assert {"Python", "ONNX Runtime", "GPU", "disk", "torch"} <= {f["what"] for f in report["findings"]}
    assert all(f["fix"] for f in report["findings"] if f["status"] != "ok")
    assert fico("doctor").out.count("\n") >= len(report["findings"])


def test_inspect_shows_the_manifest(fico, bundle):
    shown = fico("inspect", bundle)
    assert shown.code == 0
    for word in (
        "ficoco-v",
        "64 → 16",
        "vision_encoder",
        "image_features",
        "past_key_values",
        "context 2048",
    ):
        assert word in shown.out
    assert "hashes match" not in shown.out
    assert "hashes match" in fico("inspect", bundle, "--check").out


def test_inspect_gives_the_manifest_as_json(fico, bundle):
    shown = fico("inspect", bundle, "--json", "--check").json

    assert shown.pop("hashes_checked") is True
    assert shown.pop("engines") == {}
    assert shown.pop("unlisted") == []
    assert shown == json.loads((bundle / "manifest.json").read_text())


def test_export_says_what_it_made(export, out, embedding_only):
    made = export("--keep", 4, "--no-verify", "--json").json

    assert made["bundle"] == str(out)
    assert (made["method"], made["visual_tokens"], made["keep"]) == ("ficoco-v", 64, 4)
    assert made["size_bytes"] == sum(f.size for f in Manifest.load(out).files.values())


def test_export_says_what_to_do_next(export, out, embedding_only):
    outcome = export("--keep", 4, "--no-verify")

    assert outcome.out == ""
    assert f"next: fico run {out}" in outcome.err
    assert "trace embed_tokens" in outcome.err


def test_verify_passes_a_good_bundle_with_every_check(fico, bundle):
    report = fico("verify", bundle, "--json").json

    assert report["passed"]
    assert {check["status"] for check in report["checks"]} == {"passed"}
    graphs = {check["graph"] for check in report["checks"]}
    assert graphs == {"vision_encoder", "tower", "embed_tokens", "decoder_model_merged", "answers"}
    assert all(isinstance(check["value"], float) for check in report["checks"])


def test_verify_prints_a_line_for_each_check_and_the_verdict(fico, bundle):
    *lines, verdict = fico("verify", bundle).out.splitlines()

    assert verdict == "passed"
    assert all(line.startswith("passed ") for line in lines)


def test_verify_does_not_pass_what_it_could_not_compare(fico, bundle, monkeypatch):
    monkeypatch.setattr(verify, "available_bytes", lambda: 1000)
    monkeypatch.setattr(graphs, "Decoder", None)  # nor is the decoder loaded where it would not fit

    outcome = fico("verify", bundle, "--json")

    assert outcome.code == 1
    assert not outcome.json["passed"]
    skipped = [check for check in outcome.json["checks"] if check["status"] == "skipped"]
    assert {check["graph"] for check in skipped} == {
        "tower",
        "embed_tokens",
        "decoder_model_merged",
        "answers",
    }
    assert all("memory" in check["note"] and check["value"] is None for check in skipped)


def test_run_gives_the_answer_and_its_times_as_json(fico, bundle, photographs, tmp_path):
    photographs[0].save(tmp_path / "picture.png")
    answer = fico(
        "run",
        bundle,
        "--image",
        tmp_path / "picture.png",
        "--prompt",
        "What?",
        "--max-new-tokens",
        3,
        "--json",
    ).json

    assert answer.keys() >= {
        "text",
        "token_ids",
        "prompt_tokens",
        "visual_tokens",
        "stages_ms",
        "ttft_ms",
        "tpot_ms",
    }
    assert list(answer["stages_ms"]) == ["preprocess", "vision", "embed", "prefill", "decode"]
    assert answer["visual_tokens"] == 16 < answer["prompt_tokens"]
    assert answer["finish_reason"] in ("length", "eos")
    assert answer["ttft_ms"] > 0


def test_run_streams_the_same_answer_that_it_gives_as_json(fico, bundle):
    question = ["run", bundle, "--prompt", "What?", "--prompt", "And?", "--max-new-tokens", 5]
    plain, answer = fico(*question), fico(*question, "--json").json

    assert plain.out == "".join(f"{turn['text']}\n" for turn in answer["turns"])
    assert len(answer["turns"]) == 2
    assert plain.err.count("first token") == 2


@pytest.mark.parametrize(
    "line", [["fico-export"], ["fico"], *(["fico", verb] for verb in VERBS)], ids=" ".join
)
def test_help_is_quick(line):
    """Quick is what imports nothing heavy; time itself depends on what else the machine does."""
    heavy = {"torch", "onnxruntime", "transformers", "onnx", "numpy", "tensorrt", "matplotlib"}
    probe = f"import sys; print(sorted({heavy} & set(sys.modules)))"
    name, *verb = line
    _, _, program, *arguments = command_line(name, *verb, "-h")
    program = f"import atexit; atexit.register(lambda: exec({probe!r}, {{}})); {program}"
    helped = in_own_process([sys.executable, "-c", program, *arguments])

    assert helped.code == 0
    assert f"Usage: {' '.join(line)}" in helped.out
    assert helped.out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "line", [["fico-export"], ["fico"], *(["fico", verb] for verb in VERBS)], ids=" ".join
)
def test_every_command_has_the_flags_that_all_share(capsys, line):
    short, long, version = (in_this_process(capsys, *line, flag) for flag in ("-h", "--help", "--version"))

    assert (short.code, short.out) == (0, long.out)
    for flag in ("-h, --help", "-v, --verbose", "-q, --quiet", "--version", "--debug"):
        assert flag in short.out
    assert "--json" in short.out
    assert (version.code, version.out) == (0, f"{__version__}\n")


def test_every_help_line_can_be_read_alone():
    fico, exporter = typer.main.get_command(app), typer.main.get_command(export_app)
    for command in (fico, exporter, *fico.commands.values()):
        assert command is fico or command is exporter or command.help
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert text.endswith((".", "installation.")), (command.name, parameter.name, text)
            first = text.split()[0].strip(".,:")
            assert first not in FRAGMENTS, (command.name, parameter.name, text)


def test_fico_alone_shows_its_help():
    alone = in_own_process(command_line("fico"))

    assert alone.code == 0
    assert "Usage: fico" in alone.out


def test_a_device_runs_bundles_without_what_exports_them(bundle):
    program = BLOCKER + "import fico_export.runtime.vlm; from fico_export.cli.main import main; main()"
    device = [sys.executable, "-c", program]
    answer = in_own_process(
        [*device, "run", str(bundle), "--prompt", "hi", "--max-new-tokens", "2", "--json"]
    )
    assert answer.code == 0, answer.err
    assert len(answer.json["token_ids"]) == 2
    assert in_own_process([*device, "inspect", str(bundle), "--check"]).code == 0
    assert in_own_process([*device, "list", "methods"]).code == 0
    assert in_own_process([*device, "list", "devices", "--verbose"]).code == 0
    assert in_own_process([*device, "doctor"]).code == 0


def test_what_needs_the_exporter_says_how_to_install_it(bundle):
    device = [sys.executable, "-c", BLOCKER + "from fico_export.cli.main import main; main()"]
    for arguments in (
        ["export", "--keep", "64"],
        ["verify", str(bundle)],
        ["lint", str(bundle)],
        ["list", "models"],
    ):
        in_own_process([*device, *arguments]).refuses("which is not installed", "pip install '.[export]'")


def test_an_answer_reaches_a_terminal_that_cannot_show_it(bundle):
    line = command_line("fico", "run", bundle, "--prompt", "hi", "--max-new-tokens", 40)
    answered = in_own_process(line, PYTHONIOENCODING="ascii")

    assert answered.code == 0
    assert "Traceback" not in answered.err
