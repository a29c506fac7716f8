"""generation_config.json: how a checkpoint has its next token chosen, as transformers' ``generate`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from fico_export import documents
from fico_export.errors import BundleError, ConfigError

FILE_NAME = "generation_config.json"
NEW_TOKENS = 256
"""Tokens of an answer at most, where neither the request nor the checkpoint says how many."""

_TOP_K = 50  # generate's own default, which also stands where the file says null

_NOT_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
    "max_time": (),
    "use_mtp": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
}
"""What ``generate`` follows and a bundle does not, with the values besides null that change nothing."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Ids = list[Annotated[int, Field(ge=-(2**31), lt=2**31)]]


class GenerationConfig(BaseModel):
    """The fields that a bundle follows; a field that is None changes nothing.

    ``temperature`` 0 takes the most probable token, as ``do_sample`` false does.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_h: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Positive | None = None
    epsilon_cutoff: Annotated[float, Field(ge=0)] | None = None
    eta_cutoff: Annotated[float, Field(ge=0)] | None = None

    sequence_bias: list[Annotated[tuple[Ids, float], Strict(False)]] | None = None
    encoder_repetition_penalty: Positive | None = None
    repetition_penalty: Positive | None = None
    no_repeat_ngram_size: Count | None = None
    encoder_no_repeat_ngram_size: Count | None = None
    bad_words_ids: list[Annotated[Ids, Field(min_length=1)]] | None = None
    min_length: Count | None = None
    min_new_tokens: Count | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: Annotated[tuple[int, float], Strict(False)] | None = None
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None

    max_length: Count | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    stop_strings: str | list[str] | None = None

    @property
    def samples(self) -> bool:
        """Whether the next token is drawn, instead of the most probable one taken."""
        return bool(self.do_sample) and self.temperature != 0

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings or []

    def new_tokens(self, prompt_tokens: int) -> int:
        """Tokens of an answer at most, at least 1, where the request does not say how many.

        ``max_length`` counts the prompt too, and only ever shortens: it is the model's context in many checkpoints.
        """
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens or NEW_TOKENS
        return max(1, min(NEW_TOKENS, self.max_length - prompt_tokens))


def parse(content: Mapping[str, Any], place: Path, *, error: type[ConfigError], fix: str) -> GenerationConfig:
    """The content of a generation_config.json, with what ``generate`` takes for a ``top_k`` that is not set.

    Args:
        content: the JSON object.
        place: path of the file, for errors.
        error: kind of the error to raise.
        fix: what to do where it cannot be used.

    Raises:
        ConfigError: of the kind `error`: a value is of the wrong type or out of its range.
    """
    try:
        config = GenerationConfig.model_validate(dict(content))
    except ValidationError as failure:
        first = failure.errors()[0]
        name = str(first["loc"][0])
        raise error(f"{place}: {name} is {content[name]!r:.60}: {first['msg']}", fix=fix) from failure
    return config if config.top_k is not None else config.model_copy(update={"top_k": _TOP_K})


def load(path: Path) -> GenerationConfig:
    """A bundle's generation_config.json.

    Raises:
        BundleError: the file is missing or damaged.
    """
    fix = "export or copy the bundle again"
    return parse(documents.read_object(path, error=BundleError, fix=fix), path, error=BundleError, fix=fix)


def not_supported(content: Mapping[str, Any]) -> dict[str, Any]:
    """What ``generate`` would follow of a generation_config.json and a bundle does not: name → value."""
    return {
        name: content[name]
        for name, harmless in _NOT_SUPPORTED.items()
        if content.get(name) is not None and content[name] not in harmless
    }
