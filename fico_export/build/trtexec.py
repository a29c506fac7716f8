"""Scripts that build and time a bundle's engines with trtexec alone: what is in them follows the target's version.

Timings of TensorRT 10 and 11 compare only when told to: 11 captures a CUDA graph, waits in a spin and copies nothing unless it
is told otherwise, 10 the other way round.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath

from fico_export import tables
from fico_export.build.jobs import SEQUENCE, Job
from fico_export.bundle.engines import FOLDER, Options
from fico_export.bundle.manifest import TensorSpec
from fico_export.devices.nvidia import TENSORRT
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError
from fico_export.tables import Record

_OUT = "trtexec"  # folder of what the scripts make: an engine of fico's own has a build.json that says of what it was built
_MOVED = (10, 15)  # the first version that has trtexec in /usr/bin
_INTEGERS = {"int64": 8, "int32": 4, "uint8": 1, "bool": 1}  # bytes of an element
_TIMING = {"warmUp": "500", "duration": "5", "iterations": "50", "percentile": "50,90,99"}
_COMPARABLE = ("useCudaGraph", "useSpinWait", "noDataTransfers", "separateProfileRun")
_HEAD = """\
#!/bin/sh
# {title}
# TensorRT {version}. {note}
# TRTEXEC=/path/to/trtexec sh {name} takes another trtexec.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")"
TRTEXEC=${{TRTEXEC:-{trtexec}}}
command -v "$TRTEXEC" >/dev/null 2>&1 || {{
  echo "error: no trtexec at $TRTEXEC" >&2
  echo "hint:  install TensorRT {version} with its tools (libnvinfer-bin), or set TRTEXEC" >&2
  exit 2
}}
mkdir -p {out}"""
_ZEROS = """
# An integer input left to trtexec is random, and as an index it would reach out of its tensor.
zeros() {
  dd if=/dev/zero of="$1" bs="$2" count=1 2>/dev/null
}

engine_of() {
  if [ -f "$1.engine" ]; then
    echo "$1.engine"
  elif [ -f "trtexec/$1.engine" ]; then
    echo "trtexec/$1.engine"
  else
    echo "error: $1 has no engine here" >&2
    echo "hint:  fico build, or sh build.sh" >&2
    return 2
  fi
}
"""


class Flag(Record):
    """Since when trtexec has a flag, and since when the flag says nothing."""

    since: str = "10.0"
    idle: str | None = None


class Level(Record):
    """A value of --hardwareCompatibilityLevel."""

    value: str
    since: str = "10.0"


class Table(Record):
    """The whole of trtexec.toml."""

    flags: dict[str, Flag]
    hardware: dict[str, Level]


@cache
def table() -> Table:
    """trtexec.toml."""
    text = (resources.files("fico_export.build") / "trtexec.toml").read_text(encoding="utf-8")
    return tables.checked(Table, tables.parse(text, "trtexec.toml"), "trtexec.toml")


def write(bundle: Path, target: Target, jobs: Sequence[Job], options: Options) -> list[Path]:
    """Write build.sh and profile.sh for a target into `<bundle>/trt/<target>`; TensorRT is not needed.

    Returns:
        The two files.

    Raises:
        ConfigError: the target's library has no trtexec, or its trtexec does not know an option.
    """
    if target.parser is None or target.parser.runtime != TENSORRT.parser:
        raise ConfigError(
            f"there is no trtexec for target {target.name}",
            fix="build without --emit-trtexec: no GPU is needed",
        )
    for job in jobs:
        for word in (job.name, *PurePosixPath(job.graph.file).parts, *(i.name for i in job.graph.inputs)):
            # They stand in a script that someone will run, as words and as names of files that it writes.
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", word):
                raise ConfigError(f"{word!r} is no name for a script", fix="export the bundle again")
    version = target.parser.version
    texts = {
        "build.sh": build_script(version, jobs, options),
        "profile.sh": profile_script(version, jobs),
    }
    folder = bundle / FOLDER / target.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.chmod(0o755)
            partial.replace(folder / name)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}",
            fix=f"make {bundle} a folder that you may write to",
        ) from error
    return [folder / name for name in texts]


def build_script(version: str, jobs: Sequence[Job], options: Options) -> str:
    """A POSIX script that builds the engines with trtexec of one version."""
    title = "Builds the engines of this bundle with trtexec."
    lines = [
        _head(version, "build.sh", title, f"They go to {_OUT}/; the runtime takes those of `fico build`.")
    ]
    for job in jobs:
        engine = f"{_OUT}/{job.name}.engine"
        flags = [
            *_flag(version, "onnx", str(PurePosixPath("../..") / job.graph.file)),
            *_flag(version, "saveEngine", f"{engine}.partial"),
            *_flag(version, "skipInference"),
            *_of_options(version, options),
            *_ranges(version, job),
        ]
        lines += [f"\necho {shlex.quote(job.name)}", _call(flags), f"mv {engine}.partial {engine}"]
    return "\n".join(lines) + "\n"


def profile_script(version: str, jobs: Sequence[Job]) -> str:
    """A POSIX script that times each engine, a decoder at one position and at a prompt's."""
    title = "Times the engines of this bundle with trtexec."
    note = f"Times, layers and logs go to {_OUT}/."
    lines = [_head(version, "profile.sh", title, note), _ZEROS]
    for job in jobs:
        lines.append(f"engine=$(engine_of {job.name})")
        for run, profile, length in _runs(job):
            lines += _run(version, job, run, profile, length)
    return "\n".join(lines) + "\n"


def _head(version: str, name: str, title: str, note: str) -> str:
    moved = tuple(int(n) for n in version.split(".")) >= _MOVED
    trtexec = "/usr/bin/trtexec" if moved else "/usr/src/tensorrt/bin/trtexec"
    return _HEAD.format(version=version, name=name, title=title, note=note, trtexec=trtexec, out=_OUT)


def _run(version: str, job: Job, run: str, profile: int, length: int | None) -> list[str]:
    stem = f"{_OUT}/{job.name}{'.' + run if run else ''}"
    zeros, loaded = [], []
    for value in job.graph.inputs:
        if value.dtype in _INTEGERS:
            count = _INTEGERS[value.dtype]
            for size in _shape(value, length):
                count *= size
            zeros.append(f"zeros {stem}.{value.name}.bin {count}")
            loaded.append(f"{value.name}:{stem}.{value.name}.bin")
    flags = [
        *(f for name, value in _TIMING.items() for f in _flag(version, name, value)),
        *(f for name in _COMPARABLE for f in _flag(version, name)),
        *(_flag(version, "shapes", _shapes(job, length)) if length is not None else []),
        *(_flag(version, "useProfile", str(profile)) if len(job.profiles) > 1 else []),
        *(_flag(version, "loadInputs", ",".join(loaded)) if loaded else []),
        *_flag(version, "exportTimes", f"{stem}.times.json"),
        *_flag(version, "exportProfile", f"{stem}.profile.json"),
        *_flag(version, "exportLayerInfo", f"{stem}.layers.json"),
    ]
    load = ['--loadEngine="$engine"']
    log = f"{stem}.log"
    call = f"{_call([*load, *flags])} >{log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
    return [*zeros, f"echo {job.name} {run}".rstrip(), call]


def _runs(job: Job) -> Iterator[tuple[str, int, int | None]]:
    """What is timed of an engine: a name, the number of the profile, and how many positions; None where none are free."""
    lengths = [sizes[SEQUENCE] for sizes in job.profiles if SEQUENCE in sizes]
    if not lengths:
        yield "", 0, None
    elif lengths[0][0] > 1:
        yield "", 0, lengths[0][1]
    else:
        yield "decode", 0, 1
        yield "prefill", len(lengths) - 1, lengths[-1][2]


def _of_options(version: str, options: Options) -> list[str]:
    flags = [
        *_flag(version, "stronglyTyped"),
        *_flag(version, "noTF32"),  # as `fico build`: see compile.py
        *_flag(version, "builderOptimizationLevel", str(options.optimization_level)),
        *_flag(version, "timingCacheFile", f"{_OUT}/timing.cache"),
        *_flag(version, "profilingVerbosity", "detailed"),
    ]
    if options.workspace_bytes is not None:
        flags += _flag(version, "memPoolSize", f"workspace:{max(1, options.workspace_bytes // 2**20)}")  # MiB
    if options.auxiliary_streams is not None:
        flags += _flag(version, "maxAuxStreams", str(options.auxiliary_streams))
    if options.hardware_compatibility != "none":
        level = table().hardware[options.hardware_compatibility]
        if _before(version, level.since):
            raise ConfigError(
                f"trtexec {version} knows no hardware compatibility {options.hardware_compatibility} (first in "
                f"{level.since})",
                fix="--hardware-compatibility ampere_plus, or none",
            )
        flags += _flag(version, "hardwareCompatibilityLevel", level.value)
    if options.version_compatible:
        flags += _flag(version, "versionCompatible")
    return flags


def _ranges(version: str, job: Job) -> list[str]:
    """The sizes of each profile, for the inputs that have a free axis."""
    flags: list[str] = []
    for number, sizes in enumerate(job.profiles):
        if not sizes:
            continue
        if len(job.profiles) > 1:
            flags += _flag(version, "profile", str(number))
        for place, name in enumerate(("minShapes", "optShapes", "maxShapes")):
            flags += _flag(version, name, _shapes(job, sizes.get(SEQUENCE, (1, 1, 1))[place]))
    return flags


def _shapes(job: Job, length: int | None) -> str:
    free = [v for v in job.graph.inputs if any(isinstance(d, str) for d in v.shape)]
    return ",".join(f"{v.name}:{'x'.join(map(str, _shape(v, length)))}" for v in free)


def _shape(value: TensorSpec, length: int | None) -> list[int]:
    return [d if isinstance(d, int) else (length or 1) if d == SEQUENCE else 1 for d in value.shape]


def _flag(version: str, name: str, value: str | None = None) -> list[str]:
    """A flag as a shell takes it; none where the version does by default what it would say."""
    flag = table().flags[name]
    if _before(version, flag.since) or (flag.idle is not None and not _before(version, flag.idle)):
        return []
    return [f"--{name}" if value is None else f"--{name}={shlex.quote(value)}"]


def _call(flags: Sequence[str]) -> str:
    return " \\\n  ".join(['"$TRTEXEC"', *flags])


def _before(version: str, other: str) -> bool:
    return tuple(map(int, version.split("."))) < tuple(map(int, other.split(".")))
