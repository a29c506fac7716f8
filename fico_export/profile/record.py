"""What `fico profile` writes and `fico report` reads: one JSON object a run, over one bundle or several in alternation."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from fico_export import documents, extras
from fico_export.bundle.output import written_file
from fico_export.errors import ConfigError
from fico_export.tables import Record

SCHEMA_VERSION = 1
FILE_NAME = "profile.json"


def is_profile(path: Path) -> bool:
    """Whether a file is empty or an earlier profile, of any version: what a new one may replace."""
    try:
        content = documents.read_object(path, fix="give --out another file") if path.stat().st_size else None
    except ConfigError:
        return False
    return (
        content is None or {"schema_version", "iterations", "warm_up", "bundles", "ratios"} <= content.keys()
    )


class Spread(Record):
    """Milliseconds over the measured iterations."""

    median: float
    mean: float
    p10: float
    p90: float
    p99: float
    least: float
    most: float


class Machine(Record):
    """Where it was measured; None for what the machine does not tell.

    Attributes:
        clocks_mhz: by the name of what is clocked, when the run began and when it ended.
    """

    name: str
    system: str
    cpu: str | None = None
    cores: int | None = None
    gpu: str | None = None
    driver: str | None = None
    power_mode: str | None = None
    clocks_mhz: dict[str, tuple[float, float]] = Field(default_factory=dict)
    versions: dict[str, str]


class Measured(Record):
    """One bundle of a run.

    Attributes:
        bundle: its folder, as given.
        name, method, keep, visual_tokens, precision, target: of its manifest.
        backend: that ran it.
        prompt_tokens, new_tokens: of the question asked.
        stages: by name, in the order of `runtime.answer.STAGES`; the whole of the decode stage.
        vision_parts: share of the vision graph's time by part (tower, reducer, projector, other); empty where the backend
            does not tell, or fuses them.
        reducer_ms: median of the vision stage less that of a bundle without reduction in the same run, where the parts are not
            told: what the reducer costs less what it saves the tower and the projector.
        ttft, tpot: spreads; tpot None where one token was asked for.
        end_to_end: wall time of whole answers, taken apart from the stages.
        coverage: median over the answers of the sum of their stages over their end-to-end time.
        tokens_per_second: 1000 over the median tpot.
        host_peak_bytes: most memory of the process that ran the bundle, loading included; None where the machine does not tell.
        host_answering_bytes: likewise after loading.
        device_peak_bytes: most GPU memory.
    """

    bundle: str
    name: str
    method: str
    keep: int
    visual_tokens: int
    precision: str
    target: str
    backend: str
    prompt_tokens: int
    new_tokens: int
    stages: dict[str, Spread]
    vision_parts: dict[str, float] = Field(default_factory=dict)
    reducer_ms: float | None = None
    ttft: Spread
    tpot: Spread | None
    end_to_end: Spread
    coverage: float
    tokens_per_second: float | None
    host_peak_bytes: int | None = None
    host_answering_bytes: int | None = None
    device_peak_bytes: int | None = None


class Run(Record):
    """The whole of a profile: bundles measured in alternation, so that their ratios are fair.

    Attributes:
        iterations, warm_up: answers per bundle that count, and before them.
        in_turn: whether the bundles were measured one after another in place of in alternation, for want of memory: the ratios
            then hold the machine's drift too.
        picture, prompt: what was asked about; None for the image drawn by code.
        ratios: by measure (a stage, ttft, tpot, end_to_end), the median of each bundle over that of the first; a measure that
            the first spent no time in is left out.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    machine: Machine
    iterations: int
    warm_up: int
    in_turn: bool = False
    picture: str | None = None
    prompt: str
    bundles: list[Measured]
    ratios: dict[str, list[float]]

    def save(self, path: Path) -> None:
        """Write the JSON object, aside at first, so that no half of one is ever under its name.

        Raises:
            ConfigError: it cannot be written there.
            DiskError: the disk filled up.
        """
        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)
        with written_file(path, ours=is_profile) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read one.

        Raises:
            ConfigError: the file is missing, damaged, or of a newer version.
        """
        fix = "run `fico profile BUNDLE --out FILE` again"
        try:
            text = documents.read_text(path, fix=fix)
            content = documents.parse_object(text, f"{path} is no profile: it", fix=fix)
            version = content.get("schema_version")
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise ConfigError(
                    f"{path} has schema version {version}; this fico_export reads {SCHEMA_VERSION}",
                    fix=extras.UPDATE,
                )
            return cls.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"{path} is no profile: {error}", fix=fix) from error
