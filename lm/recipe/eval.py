"""The recipe's `eval` section: what is measured on a model while it trains and when it has ended."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ..parts.ranges import LONGEST, MOST, each_once
from ..parts.strict import Strict

NeedleName = Literal[
    "single_1",
    "single_2",
    "single_3",
    "multikey_1",
    "multikey_2",
    "multikey_3",
    "multivalue",
    "multiquery",
    "vt",
    "cwe",
    "fwe",
]
Mode = Literal["whole", "sliding", "reset", "carry"]
Beyond = Literal["error", "run"]
"""What an input longer than the model was made for is: an error, or run and counted. It is never cut."""


class NeedlesConfig(Strict):
    """Facts hidden in a long text and asked for, in the form of RULER (Hsieh et al. 2024); see eval/needles."""

    tasks: list[NeedleName] = Field(default=["single_1", "single_2", "single_3", "multikey_1"], min_length=1)
    lengths: list[Annotated[int, Field(gt=1, le=LONGEST)]] | None = Field(
        default=None, min_length=1, description="tokens, answer included; default: 1, 2 and 4 times the context"
    )
    depths: Annotated[int, Field(gt=0, le=10_000)] | list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=40, description="number of evenly spaced depths, or depths in [0, 1]"
    )
    samples: int = Field(default=1, gt=0, le=MOST, description="prompts per task, length and depth")
    haystack: str = Field(default="mobydick", description="a registered source or a text file")
    generate: bool = Field(default=True, description="false: only the likelihood of the right answer, which is faster")
    beyond: Beyond = "run"

    _once = field_validator("tasks", "lengths", "depths")(each_once)

    def at_most(self, prompts: int) -> Self:
        """The same with at most so many prompts of each task and length: fewer samples, then fewer depths."""
        depths = self.depths
        n = depths if isinstance(depths, int) else len(depths)
        if n > prompts:
            chosen = [round(i * (n - 1) / max(prompts - 1, 1)) for i in range(prompts)]
            depths = prompts if isinstance(depths, int) else [depths[i] for i in chosen]
        samples = min(self.samples, max(1, prompts // n))
        return self.model_copy(update={"depths": depths, "samples": samples})


class PositionsConfig(Strict):
    """Perplexity by position in the text; see eval/positions."""

    text: str = Field(default="mobydick", description="a registered source or a text file")
    modes: list[Mode] | None = Field(default=None, min_length=1, description="default: every mode the model has")
    window: int | None = Field(default=None, gt=1, le=LONGEST, description="tokens; default: the context")
    stride: int | None = Field(
        default=None, gt=0, le=LONGEST, description="sliding: new tokens per window; default: half of it"
    )
    max_tokens: int | None = Field(
        default=None, gt=0, le=MOST, description="tokens per block; default: 8 times the context"
    )
    blocks: int = Field(default=4, gt=0, le=MOST, description="stretches of the text, each scored from its own start")
    bucket: int | None = Field(
        default=None, gt=0, le=MOST, description="positions averaged together; default: the window"
    )
    beyond: Beyond = "run"

    _once = field_validator("modes")(each_once)

    def at_most(self, blocks: int) -> Self:
        """The same with at most so many stretches of the text."""
        return self.model_copy(update={"blocks": min(self.blocks, blocks)})


class EvalConfig(Strict):
    """Measured after training, and every `every` steps when that is not 0; results go to RUN/eval/{checkpoint}.

    tasks: lm-eval tasks. suites: named groups of measurements, see eval/benchmarks/suites.py. probes: synthetic tasks
    whose tokens the model reads as they are, e.g. {task: mqar, length: 64, n_pairs: 8, examples: 100}. limit: documents
    per task.
    """

    tasks: list[str] = Field(default_factory=list)
    suites: list[str] = Field(default_factory=list)
    needles: NeedlesConfig | None = None
    positions: PositionsConfig | None = None
    probes: list[dict[str, Any]] = Field(default_factory=list)
    limit: int | None = Field(default=None, gt=0, le=MOST)
    every: int = Field(default=0, ge=0, le=MOST)
    batch_tokens: int = Field(default=8192, gt=0, le=MOST, description="padded tokens per forward")
    prompt: str | None = Field(default=None, description="text that the run's final sample continues")
    yardsticks: bool = Field(
        default=False, description="end with unigram and trigram models of the same tokens beside the run"
    )

    @model_validator(mode="after")
    def _something_every(self) -> Self:
        if self.every and not (self.tasks or self.suites or self.needles or self.positions or self.probes):
            raise ValueError(
                f"eval.every: {self.every}, but nothing to measure; give tasks, suites, needles, positions or probes"
            )
        return self
