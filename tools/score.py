"""Benchmarks and other measurements on a run, by name or by suite."""

from functools import partial
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from rich.console import Console

from ..eval.console import stage
from ..lm.model.loading import load_run
from ..lm.parts.errors import ConfigError
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run
from ..lm.train.distributed import launched, start_process_group
from ..lm.train.faults import on_main, together
from .in_loop import Measurement, prepare_all
from .long import PREPARE


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
    overrides: list[str] | tuple[str, ...] = (),
    console: Console,
) -> None:
    """Measure the newest checkpoint: a suite, tasks by name, or both. Prints tables, keeps RUN/eval/{checkpoint}.

    limit: documents per task. batch_tokens: padded tokens per forward, default the recipe's, or one input if that is
    more. max_length: tokens per input, default the model's context. on_long: whether a context that does not fit is cut
    on the left and counted, or an error. overrides: `eval.KEY=VALUE`, for this time. An evaluation that was interrupted
    goes on where it stopped. Under torchrun the processes share the benchmarks' requests; the first one does the rest.
    Raises ConfigError for unknown names, the nearest ones in it, before anything is computed.
    """
    from ..eval.benchmarks.catalogue import expand
    from ..eval.benchmarks.evaluation import evaluate
    from ..eval.benchmarks.suites import MEASUREMENTS, measurements

    run = Run(run_folder)
    if other := [override for override in overrides if not override.startswith("eval.")]:
        raise ConfigError(f"override {other[0]!r}: a finished run has only eval settings to change; use eval.KEY=VALUE")
    run.recipe = Recipe.load(run.folder / "recipe.yaml", overrides)
    names = dict.fromkeys([*(measurements(suite) if suite else ()), *tasks])
    if not names:
        raise ConfigError("tasks: none given; name tasks or a suite")
    shared = launched()
    if shared:
        start_process_group()
    speaks = not shared or dist.get_rank() == 0
    console = console if speaks else Console(quiet=True)
    benchmarks = [name for name in names if name not in MEASUREMENTS]
    if benchmarks:
        expand(benchmarks)
    with together():
        model, tokenizer, newest = load_run(run), run.tokenizer(), run.newest_checkpoint().name
    length = max_length or run.recipe.model.context
    least = max(run.recipe.eval.batch_tokens, length)
    tokens = batch_tokens if isinstance(batch_tokens, int) else least
    long = [
        Measurement(name, partial(PREPARE[name], model, run.recipe, tokenizer, tokens), run.folder / "eval")
        for name in MEASUREMENTS
        if name in names and speaks
    ]
    on_main(lambda: prepare_all(long, console))
    if benchmarks:
        with stage(console, f"scoring {', '.join(benchmarks)}"):
            scores = evaluate(
                model,
                tokenizer,
                benchmarks,
                max_length=length,
                cache=Path(run.recipe.data.cache).expanduser(),
                limit=limit,
                num_fewshot=num_fewshot,
                fewshot_seed=fewshot_seed,
                batch_tokens=batch_tokens or least,
                on_long=on_long,
                responses=run.folder / "eval" / "responses",
                data_parallel=shared,
                seed=run.recipe.seed,
                checkpoint=newest,
                progress=speaks,
            )
        if speaks:
            scores.save(run.folder / "eval" / newest / "tasks.json")
        console.print(scores.table())
    for one in long:
        one.shown(model, newest, console)
