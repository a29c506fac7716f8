"""Rules by which a prompt shows an image: one file each, which ends in a `RULE`. The folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from fico_export import extras
from fico_export.errors import BundleError

if TYPE_CHECKING:
    from fico_export.runtime.inputs.layouts.base import Rule


def names() -> list[str]:
    """Of the rules that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def get(name: str) -> Rule:
    """The rule of a manifest's layout.

    Raises:
        BundleError: there is none of that name.
    """
    if name not in names():
        raise BundleError(
            f"the bundle shows images by the rule {name!r}; this fico_export knows {', '.join(names())}",
            fix=f"{extras.UPDATE}; or export the model again with this version",
        )
    rule: Rule = importlib.import_module(f"{__name__}.{name}").RULE
    return rule
