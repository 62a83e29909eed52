"""`hybridlm bench`: one verb per thing to measure, each a thin call."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .arguments import (
    MOST,
    JsonFile,
    Only,
    Overrides,
    PlotFile,
    RecipeName,
    RunFolder,
    Seed,
    Threads,
    console,
    find_recipe,
    finite,
    numbers,
    open_run,
)

bench_app = typer.Typer(help="Measure: operators, training, scoring, a study of many variants.", no_args_is_help=True)


def _chunk(size: int) -> int:
    if size not in (16, 32, 64):
        raise typer.BadParameter(f"{size} is not 16, 32 or 64")
    return size


@bench_app.command("ops")
def bench_ops(
    threads: Annotated[list[int] | None, typer.Option(min=1, max=1024, help="thread counts; default: 1 and 2")] = None,
    repeats: Annotated[int, typer.Option(min=2, max=MOST, help="alternating runs of each side")] = 30,
    chunk_size: Annotated[int, typer.Option(callback=_chunk, help="tokens per chunk of our side: 16, 32 or 64")] = 64,
    only: Annotated[str, typer.Option(metavar="NAME", help="operators whose names begin so; default: all")] = "",
    json_file: JsonFile = None,
) -> None:
    """Every operator's CPU backends against transformers, flash-linear-attention or PyTorch, in turn in one process."""
    from .bench_cases import CASES
    from .bench_ops import bench_ops as measure

    if not any(case.name.startswith(only) for case in CASES):
        known = ", ".join(sorted({case.op.name for case in CASES}))
        raise typer.BadParameter(f"no operator's name begins with {only!r}; there are: {known}", param_hint="--only")
    result = measure(tuple(threads or (1, 2)), repeats, chunk_size=chunk_size, only=only, console=console())
    if json_file:
        json_file.write_text(json.dumps(result, indent=1))


@bench_app.command("train")
def bench_train(
    steps: Annotated[int, typer.Option(min=2, max=MOST, help="timed steps of each model")] = 12,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option()] = "fp32",
    threads: Threads = 2,
) -> None:
    """The demo model's training step against transformers' OlmoHybrid of the same size."""
    from .bench_train import bench

    bench(steps, precision, threads, console())


@bench_app.command("decode")
def bench_decode(
    subject: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="a run folder, or a recipe with random weights")],
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST, help="sequences at once; default: 1 and 8")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=2, max=MOST, help="tokens before; default: 256 and 4096")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="turns of each side, 4 tokens a turn")] = 12,
    threads: Threads = 2,
    json_file: JsonFile = None,
) -> None:
    """Greedy decoding against transformers with the same weights, prefill left out."""
    from dataclasses import asdict

    from .bench_decode import bench_decode as measure

    rows = measure(subject, batch or [1, 8], context or [256, 4096], rounds, threads, console())
    if json_file:
        json_file.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1))


@bench_app.command("eval")
def bench_eval(
    run: RunFolder,
    tasks: Annotated[str, typer.Option(help="comma-separated")] = "piqa,arc_challenge",
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="questions of each task")] = 100,
    num_fewshot: Annotated[int, typer.Option(min=0, max=1000, help="solved questions before each")] = 0,
    threads: Threads = 2,
    peer: Annotated[bool, typer.Option(help="beside lm-eval's hf backend")] = True,
    json_file: JsonFile = None,
) -> None:
    """Scoring with and without shared prefixes and by lm-eval's hf backend, in turn, with equal scores."""
    open_run(run)
    from .bench_eval import bench_eval as measure

    result = measure(run, tasks.split(","), limit, num_fewshot, threads, peer, console())
    if json_file:
        json_file.write_text(json.dumps(result, indent=1))


@bench_app.command("capacity")
def bench_capacity(
    key_dim: Annotated[int, typer.Option(min=1, max=4096, help="channels of a key")] = 64,
    labels: Annotated[int, typer.Option(min=2, max=1 << 16, help="different values")] = 64,
    trials: Annotated[int, typer.Option(min=1, max=MOST, help="draws of keys and labels")] = 20,
    decay: Annotated[float, typer.Option(callback=finite, help="of the gated operators, per write")] = 0.99,
    seed: Seed = 0,
) -> None:
    """How many random associations each operator holds before it answers wrongly; nothing is trained."""
    from ..eval.synthetic.capacity import capacity

    console().print(capacity(key_dim, labels, trials=trials, decay=decay, seed=seed).table())


@bench_app.command("random-features")
def bench_random_features(
    heads: Annotated[int, typer.Option(min=1, max=1 << 16, help="of random addressing")] = 60,
    dim: Annotated[int, typer.Option(min=1, max=4096, help="channels of an input")] = 8,
    keys: Annotated[int, typer.Option(min=1, max=1 << 16, help="inputs beside the query")] = 16,
    seeds: Annotated[int, typer.Option(min=1, max=MOST, help="draws of heads, inputs and targets")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="the first of them")] = 0,
) -> None:
    """What attention learns whose queries and keys stay as drawn, beside a random ReLU network; ridge regression."""
    from ..eval.synthetic.random_features import Sizes, measure

    console().print(measure(seed, seeds, Sizes(heads, dim, keys)).table())


@bench_app.command("study")
def bench_study(
    recipe: RecipeName,
    overrides: Overrides = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=1024, help="variants that train at the same time, on a thread each")
    ] = 2,
    only: Only = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs and tables; default: runs/{name}")] = None,
) -> None:
    """Train every variant of a grid recipe and table scores, speed, parameters and state; goes on where it stopped."""
    find_recipe(recipe, overrides)
    from .study import study

    study(recipe, overrides or [], jobs, only, out, console())


@bench_app.command("kernels")
def bench_kernels(
    op: Annotated[list[str] | None, typer.Option(help="an operator; default: all")] = None,
    targets: Annotated[
        str, typer.Option(help="comma-separated, to compile for: sm_80, sm_90, sm_100, sm_120, gfx942")
    ] = "sm_80,sm_90",
    peer: Annotated[bool, typer.Option(help="beside flash-linear-attention's kernels")] = True,
    head_dims: Annotated[
        str | None, typer.Option(help="comma-separated, for the sweep; with --plot: 16,32,64,128,256")
    ] = None,
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    budget_check: Annotated[
        bool, typer.Option("--budget-check", help="only hold our kernels against tools/kernel_report/budgets.json")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="only rewrite those budgets")] = False,
) -> None:
    """Registers, spills, bytes, launches, host time and time bounds of every Triton kernel; needs no GPU."""
    given = None if head_dims is None else numbers(head_dims, "--head-dims", most=256)
    from .kernel_report.report import PLOT_DIMS, check_budgets, report_kernels

    if budget_check or record:
        raise typer.Exit(0 if check_budgets(console(), record) else 1)
    dims = given or (list(PLOT_DIMS) if plot_file else [])
    report_kernels(op or [], targets.split(","), peer, dims, json_file, plot_file, console())
