"""Options of the rotary position embedding of `rope`, which needs torch where these do not."""

import math
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from .ranges import LONGEST
from .strict import Strict


class RopeConfig(Strict):
    """theta_i = theta^(-2i/d). `linear` divides all frequencies by `factor`, `llama3` and `yarn` only the slow ones."""

    model_config = ConfigDict(frozen=True)  # tables are kept by it

    theta: float = Field(default=10000.0, gt=1, le=1e15)
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of a head's channels that turn: its first ones")
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = Field(default=1.0, ge=1, le=1e6)
    original_context: int = Field(
        default=8192, gt=0, le=LONGEST, description="llama3, yarn: tokens before the extension"
    )
    low_freq_factor: float = Field(
        default=1.0, gt=0, le=1e6, description="llama3: turns below which a frequency is divided"
    )
    high_freq_factor: float = Field(
        default=4.0, gt=0, le=1e6, description="llama3: turns above which a frequency is kept"
    )
    beta_slow: float = Field(default=1.0, gt=0, le=1e6, description="yarn: turns below which a frequency is divided")
    beta_fast: float = Field(default=32.0, gt=0, le=1e6, description="yarn: turns above which a frequency is kept")
    attention_factor: float | None = Field(
        default=None, ge=0.01, le=100, description="yarn: scale of q and k; None: 0.1 ln(factor) + 1"
    )
    truncate: bool = Field(default=True, description="yarn: the ramp runs between whole frequencies")

    @model_validator(mode="after")
    def _ramps_rise(self) -> Self:
        for scaling, low, high in (
            ("llama3", "low_freq_factor", "high_freq_factor"),
            ("yarn", "beta_slow", "beta_fast"),
        ):
            if self.scaling == scaling and not getattr(self, low) < getattr(self, high):
                raise ValueError(f"{low}: {getattr(self, low):g} is not below {high}={getattr(self, high):g}; lower it")
        return self

    def __hash__(self) -> int:  # pydantic's own is hidden from type checkers
        return hash(tuple(self.__dict__.values()))

    def width(self, head_dim: int) -> int:
        """Channels of a head that turn."""
        return int(head_dim * self.fraction)

    @property
    def scale(self) -> float:
        """Factor on q and on k: 1 but for yarn, which sharpens the softmax (Peng et al. 2023, eq. 22)."""
        if self.scaling != "yarn":
            return 1.0
        return self.attention_factor or 0.1 * math.log(self.factor) + 1
