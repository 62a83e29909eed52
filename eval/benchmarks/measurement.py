"""Benchmarks as a measurement, and how they are scored. lm-eval loads with the first step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from ...lm.parts.errors import concerning

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.hf.chat import ChatTemplate
    from ...lm.model import HybridLM
    from .evaluation import Benchmarks
    from .harness import HybridHarness, OnLong
    from .scores import Scores

    Harness = TypeVar("Harness", bound=HybridHarness)


@dataclass(frozen=True)
class Scoring:
    """How benchmarks are scored.

    max_length: tokens per input, BOS included. limit: only the first documents of each task. num_fewshot: solved
    questions before each, the task's first ones or drawn by fewshot_seed. batch_tokens, on_long, responses,
    data_parallel, seed and progress: see HybridHarness. chat: the templates that write the prompts, or None.
    """

    max_length: int
    batch_tokens: int | Literal["auto"] = 8192
    limit: int | None = None
    num_fewshot: int = 0
    fewshot_seed: int | None = None
    on_long: "OnLong" = "truncate"
    responses: Path | None = None
    data_parallel: bool = False
    seed: int = 0
    progress: bool = False
    chat: "ChatTemplate | None" = None


@dataclass(frozen=True)
class TasksMeasurement:
    """Tasks and groups of the catalogue, built once; their files are looked for in `cache`.

    field: of the recipe that asks for them, which errors before the first run begin with; empty where none does.
    """

    name: ClassVar[str] = "tasks"

    tasks: list[str]
    tokenizer: "Tokenizer"
    cache: str | Path
    scoring: Scoring
    field: str = ""

    @cached_property
    def benchmarks(self) -> "Benchmarks":
        how = self.scoring
        with self._concerning():
            from .catalogue import Options
            from .evaluation import Benchmarks

            options = Options(Path(self.cache).expanduser(), self.tokenizer, how.num_fewshot, how.fewshot_seed)
            return Benchmarks.build(self.tasks, options, how.limit)

    def prepare(self) -> None:
        """Build every question.

        Raises ConfigError for no or an unknown task and for numbers out of range, DataError for missing files.
        """
        _ = self.benchmarks

    def rehearse(self, model: "HybridLM") -> None:
        """Encode every request and hold it to the limits."""
        benchmarks = self.benchmarks
        with self._concerning():
            from .evaluation import Rehearsal

            benchmarks.rehearse(self._harness(Rehearsal, model))

    def run(self, model: "HybridLM", checkpoint: str) -> "Scores":
        from .harness import HybridHarness

        return self.benchmarks.score(self._harness(HybridHarness, model), checkpoint)

    def _harness(self, kind: "type[Harness]", model: "HybridLM") -> "Harness":
        how = self.scoring
        return kind(
            model,
            self.tokenizer,
            max_length=how.max_length,
            batch_tokens=how.batch_tokens,
            on_long=how.on_long,
            responses=how.responses,
            data_parallel=how.data_parallel,
            seed=how.seed,
            progress=how.progress,
            chat=how.chat,
        )

    def _concerning(self) -> AbstractContextManager[None]:
        return concerning(self.field) if self.field else nullcontext()
