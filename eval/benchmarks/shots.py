"""Solved questions in front of a question: asking for more than there are is one error that says how many there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from lm_eval.api.task import ConfigurableTask

from ...lm.parts.errors import ConfigError


@contextmanager
def shots_counted() -> Iterator[None]:
    """Inside, a prompt with too many solved questions is a ConfigError; lm-eval fails in its sampler."""
    write = ConfigurableTask.fewshot_context

    def counted(self: ConfigurableTask, doc: Any, num_fewshot: int, *args: Any, **options: Any) -> Any:
        if num_fewshot:
            _check(self, doc, num_fewshot)
        return write(self, doc, num_fewshot, *args, **options)

    with mock.patch.object(ConfigurableTask, "fewshot_context", counted):
        yield


def _check(task: ConfigurableTask, doc: Any, n: int) -> None:
    """Where solved questions come from the split that is asked, no copy of the question itself is one."""
    if not hasattr(task, "sampler"):
        raise ConfigError(f"task {task.config.task!r}: num_fewshot={n}, but it has no solved questions; use 0")
    pool = task.sampler.df
    if 2 * n <= len(pool):
        return
    own = task.fewshot_cfg.split == task.config.test_split
    there = sum(document != doc for document in pool) if own else len(pool)
    if n > there:
        raise ConfigError(
            f"task {task.config.task!r}: num_fewshot={n}, but there are {there} solved questions; use {there} or less"
        )
