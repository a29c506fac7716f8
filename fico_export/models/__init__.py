"""Models: families, and the towers, mergers and decoders that they are made of, one file each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fico_export.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from fico_export.models.source import Architecture, Family, SourceModel

DEMO = "demo"
CONFIG = ("config.json",)
_HUB = "https://huggingface.co/"
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def known_families() -> dict[str, Family]:
    """File name → family. Imports torch and transformers."""
    from fico_export.models import families

    stems = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    return {stem: importlib.import_module(f"{families.__name__}.{stem}").FAMILY for stem in stems}


def aliases() -> dict[str, str]:
    """Short name → hub id, over all families."""
    return {alias: hub_id for family in known_families().values() for alias, hub_id in family.aliases.items()}


def packaged(model: str) -> Path | None:
    """Folder of the config.json that this package brings along for an alias or its hub id; None for any other model."""
    alias = next((short for short, hub_id in aliases().items() if model in (short, hub_id)), None)
    folder = Path(__file__).parent / "configs" / alias if alias and not Path(model).is_dir() else None
    return folder if folder and folder.is_dir() else None


def load(folder: Path, revision: str | None = None) -> SourceModel:
    """The model in a checkpoint folder.

    Raises:
        CheckpointError: not a checkpoint of a supported family, or a damaged one.
    """
    return _family(folder)[0].load(folder, revision)


def describe(folder: Path) -> Architecture:
    """What the config.json of a folder says; no other file is read.

    Raises:
        CheckpointError: there is none, or not of a supported family.
    """
    family, config = _family(folder)
    return family.describe(config)


def _family(folder: Path) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint, and the content of its config.json."""
    from fico_export.models.parts import identify, layouts
    from fico_export.models.weights import read_json

    config_path = folder / identify.CONFIG
    if not config_path.exists():
        raise identify.no_config(folder)
    config = read_json(config_path)
    layouts.check(config, folder)
    model_type = config.get("model_type")
    supported = {t: family for family in known_families().values() for t in family.model_types}
    if not isinstance(model_type, str) or model_type not in supported:
        named = {t: tuple(family.aliases) for t, family in supported.items()}
        raise layouts.unsupported(model_type, config, config_path, named)
    return supported[model_type], config


def find(model: str, revision: str | None = None, files: Sequence[str] = _FILES) -> tuple[Path, str | None]:
    """Folder and revision of a model named by an alias, a hub id, or its folder.

    Args:
        model: that name.
        revision: of a hub repository.
        files: patterns of those to download.

    Raises:
        ConfigError: no such folder or alias, or the hub cannot be reached.
    """
    from fico_export.models.parts import identify

    place = Path(model).expanduser()
    if place.is_dir():
        return place.resolve(), None
    if place.exists():
        raise identify.file(place)
    known = aliases()
    hub_id = known.get(model, model).removeprefix(_HUB).strip("/")
    if hub_id.count("/") != 1 or hub_id.startswith((".", "~")) or model.startswith("/"):
        if "/" in model:
            raise ConfigError(
                f"no folder {model}", fix="give the checkpoint's folder, a hub id (owner/name) or an alias"
            )
        raise unknown_name("model", model, [DEMO, *known])
    if files != CONFIG:
        _refuse_before_download(hub_id, revision)
    return _download(hub_id, revision, files)


def _refuse_before_download(hub_id: str, revision: str | None) -> None:
    """Look at the small files that say what a hub repository is, before its weights are downloaded."""
    from fico_export.models.parts import identify, layouts
    from fico_export.models.weights import read_json

    folder, _ = _download(hub_id, revision, identify.SMALL)
    if (folder / identify.CONFIG).is_file():
        layouts.check(read_json(folder / identify.CONFIG), folder)
    elif (folder / identify.ADAPTER).is_file():
        raise identify.no_config(folder)
    else:
        raise ConfigError(
            f"{hub_id} has no config.json, as a repository of GGUF or ONNX files has none",
            fix="give the checkpoint in transformers' layout that it was made from",
        )


def _download(hub_id: str, revision: str | None, files: Sequence[str]) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(files)))
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"the hub has no model {hub_id!r}, or it is private",
            fix="check the name, or log in with `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{hub_id} has no revision {revision!r}",
            fix="give --revision a branch, tag or commit that it has",
        ) from error
    except HFValidationError as error:
        raise ConfigError(f"{hub_id!r} is no hub id", fix="give owner/name, an alias or a folder") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"cannot download {hub_id}: {' '.join(str(error).split())}",
            fix=f"connect to the network, or run `hf download {hub_id} --local-dir DIR` elsewhere and give --model DIR",
        ) from error
    return folder, folder.name
