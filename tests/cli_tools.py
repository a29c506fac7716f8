"""Drives `fico` and `fico-export` as a shell would, in this process or in one of its own; edits checkpoints and bundles."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from fico_export.cli.main import app, export_app, invoke


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object of a `--json` run; there must be nothing else on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=_no_json)

    def refuses(self, *words, code=2):
        """An error with a fix on stderr that holds these words, and nothing on stdout."""
        assert self.code == code, self.err
        assert self.out == ""
        what, fix = self.err[self.err.index("error: ") :].split("\nhint:  ")
        assert what.removeprefix("error: ").strip()
        assert fix.strip()
        for word in words:
            assert word in self.err
        assert "Traceback" not in self.err


def _no_json(constant):
    raise ValueError(f"{constant} is not JSON")


def started(line, **options):
    """A command line as a process that heeds Ctrl-C: a shell starts what it runs in the background deaf to it."""
    pipe = subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "text": True, "preexec_fn": _heed_interrupts} | options
    return subprocess.Popen(line, **options)


def _heed_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_this_process(capsys, name, *arguments):
    """Run `fico` or `fico-export` by its entry point."""
    capsys.readouterr()
    code = invoke(export_app if name == "fico-export" else app, name, [str(a) for a in arguments])
    return Outcome(code, *capsys.readouterr())


def command_line(name, *arguments):
    """The command line that runs `fico` or `fico-export` in a process of its own."""
    entry = "export_main" if name == "fico-export" else "main"
    return [sys.executable, "-c", f"from fico_export.cli.main import {entry} as m; m()", *map(str, arguments)]


def in_own_process(line, timeout=120, **environment):
    """Run a command line to its end."""
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=timeout, env=os.environ | environment, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def copied(folder: Path, to: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, to))


def edit_json(path: Path, **changes):
    """Set keys of a JSON object, `a__b` for b within a; `...` removes one."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        owner = content
        for key in outer:
            owner = owner[int(key) if isinstance(owner, list) else key]
        if value is ...:
            del owner[last]
        else:
            owner[last] = value
    path.write_text(json.dumps(content))


def edit_listed(bundle: Path, name: str, **changes):
    """As `edit_json`, of a bundle's file, whose manifest then lists it as it is."""
    edit_json(bundle / name, **changes)
    content = (bundle / name).read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_weights(folder: Path, change):
    """Replace a checkpoint's tensors by what `change` makes of them."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def split_weights(folder: Path):
    """Split a checkpoint's tensors into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(2):
        shard = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[i::2]}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[i::2], shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def flip_a_bit(path: Path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
