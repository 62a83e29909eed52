"""Scores of a model on benchmarks of the catalogue, without a network or a hub."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Self
from unittest import mock

import lm_eval.api.task
import lm_eval.utils
import numpy as np
import torch
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as run_tasks
from tqdm import tqdm

from ...lm.parts.errors import ConfigError
from ..forward.scoring import TargetScore
from .catalogue import GROUPS, Options, build, content_hash
from .conditions import Conditions
from .harness import HybridHarness
from .response_cache import fingerprint
from .scores import Scores, collect, group_mean
from .shots import shots_counted


@dataclass(frozen=True)
class Benchmarks:
    """Tasks with all their questions, built once and put to any number of models. names: tasks and groups, as asked."""

    names: list[str]
    tasks: dict[str, ConfigurableTask]
    options: Options
    limit: int | None = None

    @classmethod
    def build(cls, names: list[str], options: Options, limit: int | None = None) -> Self:
        """The catalogue's tasks, their files looked for in `options.cache`. limit: the first documents of each only.

        Raises ConfigError for no or an unknown task and for numbers out of range, DataError for missing files.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"limit: {limit} scores nothing; use 1 or more, or None for all documents")
        with _quiet(), _random_state_kept():
            return cls(names, build(names, options), options, limit)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of each task's configuration and questions."""
        return {name: content_hash(task) for name, task in self.tasks.items()}

    def score(self, harness: HybridHarness, checkpoint: str = "") -> Scores:
        """The scores of the harness's model, the same at every call. checkpoint: a name for its weights."""
        results = self._run(harness, bootstrap_iters=1000)
        shots = self.options.num_fewshot
        seed, chat = self.options.fewshot_seed if shots else None, harness.chat is not None
        conditions = Conditions(harness.max_length, self.limit, shots, seed, chat)
        counts = {"truncated": harness.truncated, "apart": harness.apart}
        scores = collect(results, self.tasks, self.hashes, **counts, conditions=conditions)
        for group in (name for name in self.names if name in GROUPS):
            scores += group_mean(group, [score for score in scores if score.task in GROUPS[group]])
        identity = fingerprint(harness.model, harness.tokenizer)
        return Scores(scores, checkpoint, harness.max_length, self.limit, identity)

    def rehearse(self, harness: "Rehearsal") -> None:
        """Everything that `score` does but running the model, which may be one without weights, on the meta device.

        Raises what scoring models of this kind would: prompts that leave no room, metrics whose package is missing.
        """
        self._run(harness, bootstrap_iters=0)

    def _run(self, harness: HybridHarness, bootstrap_iters: int) -> Any:
        with _quiet(), _random_state_kept(), templates_compiled_once(), shots_counted():
            for task in self.tasks.values():
                if self.options.fewshot_seed is not None:
                    task.set_fewshot_seed(self.options.fewshot_seed)  # its generator goes on from call to call
            # not simple_evaluate: it reseeds every global generator and describes the machine by running programs
            loaded: Any = {"tasks": self.tasks, "groups": {}, "group_map": {}}
            chat = harness.chat is not None
            return run_tasks(
                harness,
                loaded,
                limit=self.limit,
                bootstrap_iters=bootstrap_iters,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )


class Rehearsal(HybridHarness):
    """Encodes every request and holds it to the limits as HybridHarness does; computes nothing: one answer to all."""

    def _answers(self, keys: Sequence[tuple[Any, ...]], *_: Any) -> dict[int, Any]:
        return {i: "" if kind == "generate" else TargetScore(-1.0, False) for i, (kind, *_) in enumerate(keys)}


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Inside, lm-eval compiles a prompt's template once; it would for every question again, most of its time."""
    templates = lm_eval.utils.env
    with mock.patch.object(templates, "from_string", cache(templates.from_string)):
        yield


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """lm-eval draws from Python's global generator, to name tasks; training that goes on after this must not notice."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, only lm-eval's errors come through."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    with ExitStack() as stack:
        logger.setLevel(logging.ERROR)
        stack.callback(logger.setLevel, level)
        if not are_progress_bars_disabled():
            disable_progress_bars()
            stack.callback(enable_progress_bars)
        # lm-eval has no switch for the bar it shows while it writes the prompts
        stack.enter_context(mock.patch.object(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)))
        yield
