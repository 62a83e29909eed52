"""Benchmarks and other measurements on a run, by name or by suite."""

from pathlib import Path
from typing import Literal

import torch.distributed as dist
from rich.console import Console

from ..eval.benchmarks.measurement import Scoring
from ..eval.measurement import LONG, measurements
from ..lm.hf.chat import ChatTemplate
from ..lm.model.loading import load_run
from ..lm.parts.errors import ConfigError
from ..lm.recipe.eval import NeedlesConfig, PositionsConfig
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run
from ..lm.train.distributed import launched, start_process_group
from ..lm.train.faults import together
from .measure import prepare_all, show

SETTINGS = ("needles", "positions", "batch_tokens")
"""What of a recipe's `eval` section is looked at when names are given."""


def run_suite(
    run_folder: Path,
    suite: str | None,
    tasks: list[str],
    *,
    limit: int | None = None,
    batch_tokens: int | Literal["auto"] | None = None,
    max_length: int | None = None,
    num_fewshot: int = 0,
    fewshot_seed: int | None = None,
    on_long: Literal["truncate", "error"] = "truncate",
    chat: bool = False,
    overrides: list[str] | tuple[str, ...] = (),
    console: Console,
) -> None:
    """Measure the newest checkpoint: a suite, tasks by name, or both. Prints tables, keeps RUN/eval/{checkpoint}.

    limit: documents per task; prompts per task and length of needles, stretches of the text of positions. batch_tokens:
    padded tokens per forward, default the recipe's, or one input if that is more. max_length: tokens per input, default
    the model's context. on_long: whether a context that does not fit is cut on the left and counted, or an error. chat:
    the run's chat template writes the prompts of benchmarks. overrides: `eval.KEY=VALUE`, for this time. An evaluation
    that was interrupted goes on where it stopped. Under torchrun the processes share the benchmarks' requests; the
    first one does the rest.
    Raises ConfigError for unknown names, the nearest ones in it, before anything is computed.
    """
    from ..eval.benchmarks.catalogue import expand
    from ..eval.benchmarks.suites import members_of

    run = Run(run_folder)
    if other := [override for override in overrides if not override.startswith("eval.")]:
        raise ConfigError(f"override {other[0]!r}: a finished run has only eval settings to change; use eval.KEY=VALUE")
    run.recipe = Recipe.load(run.folder.absolute() / "recipe.yaml", overrides)
    if idle := [override for override in overrides if not override[5:].strip().startswith(SETTINGS)]:
        raise ConfigError(
            f"override {idle[0]!r}: is not looked at here; what to score and how much of it is said by --tasks, "
            f"--suite and --limit, and eval. takes {', '.join(SETTINGS)}"
        )
    if limit:
        evals = run.recipe.eval
        evals.needles = (evals.needles or NeedlesConfig()).at_most(limit)
        evals.positions = (evals.positions or PositionsConfig()).at_most(limit)
    names = dict.fromkeys([*(members_of(suite) if suite else ()), *tasks])
    if not names:
        raise ConfigError("tasks: none given; name tasks or a suite")
    shared = launched()
    if shared:
        start_process_group()
    speaks = not shared or dist.get_rank() == 0
    console = console if speaks else Console(quiet=True)
    benchmarks = [name for name in names if name not in LONG]
    if benchmarks:
        expand(benchmarks)
    with together():
        model, tokenizer, newest = load_run(run), run.tokenizer(), run.newest_checkpoint().name
    results = run.folder / "eval"
    length = max_length or run.recipe.model.context
    scoring = Scoring(
        max_length=length,
        batch_tokens=batch_tokens or max(run.recipe.eval.batch_tokens, length),
        limit=limit,
        num_fewshot=num_fewshot,
        fewshot_seed=fewshot_seed,
        on_long=on_long,
        responses=results / "responses",
        data_parallel=shared,
        seed=run.recipe.seed,
        progress=speaks,
        chat=ChatTemplate.of(run) if chat else None,
    )
    asked = measurements(names, run.recipe, tokenizer, scoring)
    if not speaks:
        asked = [one for one in asked if one.name not in LONG]
    with together():
        prepare_all(asked, model, console)
    for one in asked:
        if speaks:
            doing = f"measuring {one.name}" if one.name in LONG else f"scoring {', '.join(benchmarks)}"
            show(one, model, newest, results, doing, console)
        else:
            one.run(model, newest)
