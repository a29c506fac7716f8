"""What was measured of bundles: profiles of `fico profile`, and answers counted by `scripts/evaluate.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from fico_export import documents
from fico_export.bundle.manifest import Manifest
from fico_export.errors import ConfigError
from fico_export.profile.record import FILE_NAME, Measured, Run
from fico_export.tables import Record


class Evaluated(Record):
    """The answers of one method at one budget: 1 for right and 0 for wrong, a question each, by kind."""

    method: str
    keep: int | None
    policy: str
    right: dict[str, list[int]] = Field(min_length=1)

    @property
    def accuracy(self) -> float:
        """Mean over kinds of the share answered right."""
        return sum(sum(hits) / len(hits) for hits in self.right.values()) / len(self.right)

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the accuracy: each kind's share a binomial of its own."""
        variance = 0.0
        for hits in self.right.values():
            share = sum(hits) / len(hits)
            variance += share * (1 - share) / len(hits)
        return 1.96 * math.sqrt(variance) / len(self.right)


def profiles(bundles: Sequence[tuple[Path, Manifest]], given: Sequence[Path]) -> list[Run]:
    """The profiles given, or those that lie in the bundles' folders.

    Raises:
        ConfigError: a file is no profile, or measured none of the bundles.
    """
    lie = [path for folder, _ in bundles if (path := folder / FILE_NAME).is_file()]
    found: list[Run] = []
    for path in given or lie:
        run = Run.load(path)
        if not any(measures(entry, manifest) for entry in run.bundles for _, manifest in bundles):
            measured = ", ".join(entry.name for entry in run.bundles) or "none"
            raise ConfigError(
                f"{path} is of other bundles: it measured {measured}, and this report is of "
                f"{', '.join(manifest.name for _, manifest in bundles)}",
                fix="give the profile of these bundles, or add the bundles it measured to the command"
                if given
                else "run `fico profile` on the bundle again, or delete the file",
            )
        if run not in found:  # a run over several bundles may lie in each, or be given twice
            found.append(run)
    return found


def measures(entry: Measured, manifest: Manifest) -> bool:
    """Whether a profile's entry is of this bundle, by all that both say of it."""
    reduction = manifest.reduction
    mine = (manifest.name, reduction.method, reduction.keep, manifest.precision, manifest.target)
    return mine == (entry.name, entry.method, entry.keep, entry.precision, entry.target)


def evaluation(path: Path) -> list[Evaluated]:
    """The results.json of `scripts/evaluate.py`.

    Raises:
        ConfigError: it is missing, damaged, or something else.
    """
    fix = "give the results.json that `python scripts/evaluate.py` writes"
    try:
        content = documents.parse(documents.read_text(path, fix=fix), f"{path} is no evaluation: it", fix=fix)
        found = TypeAdapter(list[Evaluated]).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path} is no evaluation: {where + ': ' if where else ''}{first['msg']}", fix=fix
        ) from error
    if not found:
        raise ConfigError(f"{path} holds no results", fix=fix)
    for record in found:
        for kind, hits in record.right.items():
            if not hits or not set(hits) <= {0, 1}:
                raise ConfigError(f"{path}: {record.method}, {kind}: not a list of 0 and 1", fix=fix)
    return found


def accuracy_of(
    results: Sequence[Evaluated], method: str, keep: int | None, positions: str
) -> Evaluated | None:
    """The result of a method at a budget under a policy of position ids; `none` has one result for all."""
    wanted = (method, None, "original") if method == "none" else (method, keep, positions)
    return next((r for r in results if (r.method, r.keep, r.policy) == wanted), None)
