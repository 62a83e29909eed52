"""`evaluate`: scores a model on benchmarks of the catalogue, without a network or a hub."""

import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import lm_eval.api.task
import numpy as np
import torch
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from lm_eval.evaluator import evaluate as run_tasks
from tqdm import tqdm

from ..lm.errors import ConfigError
from ..lm.model import HybridLM
from .catalogue import GROUPS, Options, build, content_hash, expand
from .harness import HybridHarness
from .response_cache import fingerprint
from .scores import Score, Scores, collect, group_mean

if TYPE_CHECKING:
    from ..lm.data.tokenizer import Tokenizer


def evaluate(
    model: HybridLM,
    tokenizer: "Tokenizer",
    tasks: list[str],
    *,
    max_length: int,
    cache: str | Path,
    limit: int | None = None,
    num_fewshot: int = 0,
    fewshot_seed: int | None = None,
    batch_tokens: int | Literal["auto"] = 8192,
    on_long: Literal["truncate", "error"] = "truncate",
    responses: str | Path | None = None,
    data_parallel: bool = False,
    seed: int = 0,
    checkpoint: str = "",
    verbose: bool = False,
) -> Scores:
    """Score `model` on tasks and groups of the catalogue; their files are looked for in `cache`.

    max_length: tokens per input, BOS included. limit: only the first documents of each task. num_fewshot: solved
    questions before each, the task's first ones or drawn by fewshot_seed. checkpoint: a name for the weights, kept with
    the scores. verbose: lm-eval's messages and progress bars. batch_tokens, on_long, responses and data_parallel: see
    HybridHarness. Raises ConfigError for no or an unknown task and for numbers out of range, DataError for missing
    files.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} scores nothing; use 1 or more, or None for all documents")
    expand(tasks)
    harness = HybridHarness(
        model,
        tokenizer,
        max_length=max_length,
        batch_tokens=batch_tokens,
        on_long=on_long,
        responses=responses,
        data_parallel=data_parallel,
        seed=seed,
        verbose=verbose,
    )
    options = Options(Path(cache).expanduser(), tokenizer, num_fewshot, fewshot_seed)
    with _quiet(verbose), _random_state_kept():
        built = build(tasks, options)
        # not simple_evaluate: it reseeds every global generator and describes the machine by running programs
        loaded: Any = {"tasks": built, "groups": {}, "group_map": {}}
        results: Any = run_tasks(harness, loaded, limit=limit, bootstrap_iters=1000)
    rows = collect(results, built, {name: content_hash(task) for name, task in built.items()})
    scores = [Score(truncated=harness.truncated[r["task"]], apart=harness.apart[r["task"]], **r) for r in rows]
    for group in (name for name in tasks if name in GROUPS):
        scores += group_mean(group, [score for score in scores if score.task in GROUPS[group]])
    return Scores(scores, checkpoint, max_length, limit, fingerprint(model, tokenizer))


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
def _quiet(verbose: bool) -> Iterator[None]:
    """Without `verbose`, only lm-eval's errors come through."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    with ExitStack() as stack:
        if not verbose:
            logger.setLevel(logging.ERROR)
            stack.callback(logger.setLevel, level)
            if not are_progress_bars_disabled():
                disable_progress_bars()
                stack.callback(enable_progress_bars)
            # lm-eval has no switch for the bar it shows while it writes the prompts
            stack.enter_context(mock.patch.object(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)))
        yield
