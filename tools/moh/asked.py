"""The value of --moh: which heads a converted model uses, and by what its shared heads are chosen."""

from collections.abc import Collection
from typing import Any, NamedTuple

from ...lm.hf.families import llama_moh
from ...lm.hf.heads import ROUTER
from ...lm.mixers.attention.head_options import HeadsConfig
from ...lm.parts.errors import ConfigError, brief
from ...lm.parts.strict import nearest

FIRST = "first"
SHARED_BY = (FIRST, "norm", "gradient", "ablation")
"""`first`, as in the paper, ranks nothing; of the others see ranking.py."""
NUMBERS = ("shared", "active")
KEYS = (*NUMBERS, "shared-by", "route", "straight-through", "normalise", "router-dtype")


class Conversion(NamedTuple):
    """heads: options of routed heads without the shared ones' numbers; None are those of the published MoH-LLaMA3."""

    heads: HeadsConfig | None
    shared_by: str

    def heads_in(self, n_heads: int) -> HeadsConfig:
        """The options in a model with so many heads. Raises ConfigError where MoH-LLaMA3's ratios do not fit."""
        return HeadsConfig(**llama_moh.published_heads(n_heads)) if self.heads is None else self.heads


def parse(text: str) -> Conversion:
    """KEY=VALUE,..., or moh-llama3. Raises ConfigError for anything else."""
    if text.strip() == llama_moh.NAME:
        return Conversion(None, FIRST)
    given: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals and value):
            raise ConfigError(
                f"--moh {brief(text)}: {brief(part)} is not KEY=VALUE; give for example shared=3,active=7,"
                f"shared-by=norm, or {llama_moh.NAME}"
            )
        if key not in KEYS:
            raise ConfigError(f"--moh {brief(text)}: unknown key {brief(key)}; {nearest(key, KEYS)}")
        if key in given:
            raise ConfigError(f"--moh {brief(text)}: {key} is there twice; give it once")
        given[key] = _number(key, value) if key in NUMBERS else value
    shared_by = check_shared_by("--moh shared-by", given.pop("shared-by", FIRST))
    options = {key.replace("-", "_"): value for key, value in given.items()}
    return Conversion(HeadsConfig.parse({"router": ROUTER, **options}, where="--moh"), shared_by)


def check_shared_by(option: str, name: str) -> str:
    """One of SHARED_BY. Raises ConfigError."""
    if name not in SHARED_BY:
        raise ConfigError(f"{option}: {brief(name)} is unknown; {nearest(name, SHARED_BY)}")
    return name


def check_calibration(text: str | None, shared_by: Collection[str]) -> None:
    """Raises ConfigError for a text that ranks nothing."""
    if text is not None and set(shared_by) == {FIRST}:
        others = ", ".join(SHARED_BY[1:])
        raise ConfigError(f"--calibrate {brief(text)}: shared-by=first ranks no heads; leave it out, or use {others}")


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise ConfigError(f"--moh {key}: {brief(value)} is no number of heads; give a whole number")
    return int(value)
