"""The recipe's `init`, `distill` and `freeze`: what is tuned starts from another run, and keeps some of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..parts.ranges import MOST, PathText
from ..parts.strict import Strict

Pattern = Annotated[str, Field(min_length=1, max_length=200)]
"""A parameter's name, or a glob of names: `*` and `?` stand for anything, dots included."""


class InitConfig(Strict):
    """The weights of step 0 are those of another run's newest checkpoint. `init: RUN` is short for `init: {run: RUN}`.

    Names and shapes have to be the same, and so has the tokenizer. Once the run has a checkpoint it goes on from that.
    """

    run: PathText = Field(description="run folder, an import's or a conversion's too; it is read once, at step 0")
    missing: list[Pattern] = Field(
        default_factory=list, description="parameters that keep their own start where the other run has none"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value


class DistillConfig(Strict):
    """Training to be like a frozen teacher that has the same vocabulary; see lm/train/distill.py for the loss."""

    teacher: PathText = Field(description="run folder, an import's too; its newest checkpoint teaches")
    temperature: float = Field(
        default=1.0, ge=0.05, le=100, description="1: the distributions that the models are used with"
    )
    weight: float = Field(
        default=0.5, ge=0, le=1, description="share of the distance to the teacher; the rest is the cross entropy's"
    )
    hidden: float = Field(default=0.0, ge=0, le=1e4, description="weight of the distance between hidden states")
    layers: Literal["last", "all"] = Field(
        default="last", description="hidden states: what the output head reads, or also what leaves every layer"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.weight or self.hidden):
            raise ValueError("distill: nothing is learned of the teacher; give weight or hidden, or leave distill out")
        return self


class FreezeRule(Strict):
    """Parameters that do not train until a step, or at all. Where rules overlap the longest holds."""

    match: list[Pattern] = Field(min_length=1, description="parameters by name or glob, e.g. [embed*, '*.ffn.*']")
    until: float | None = Field(
        default=None,
        gt=0,
        le=MOST,
        description="fraction of the steps below 1, else a number of steps; default: for the whole run",
    )
