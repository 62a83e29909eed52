"""The command line: one verb per thing a user does, each a thin call. Heavy imports happen inside the verbs."""

import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
bench_app = typer.Typer(help="Measure: operators, training, scoring, a study of many variants.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
convert_app = typer.Typer(help="Make a run of a checkpoint from elsewhere.", no_args_is_help=True)
app.add_typer(convert_app, name="convert")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe's name or YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.steps=100")]
Only = Annotated[str | None, typer.Option(metavar="GLOB", help="variants of a grid, e.g. '*-6to1'; default: all")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, e.g. runs/demo")]


@app.callback()
def launched(local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None) -> None:
    """Pretrain, score and run hybrid language models."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))  # the deepspeed launcher puts the flag before the verb


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="sources to download")] = None,
    cache: Annotated[Path, typer.Option(help="where downloads are kept")] = Path("~/.cache/hybridlm"),
) -> None:
    """Download pinned data sets; without a name, list them with licence and use."""
    from .sources import fetch_sources, list_sources

    if names:
        fetch_sources(names, cache.expanduser(), _console())
    else:
        list_sources(_console())


@app.command()
def prepare(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Train the tokenizer and pack the corpus of a recipe; does nothing when that is done."""
    from ..lm.recipe.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from ..lm.data.prepare import prepare as run_prepare

    _console().print(f"prepared: {run_prepare(loaded).folder}", highlight=False)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="a recipe's name, YAML file, or a run folder to go on with")
    ],
    overrides: Overrides = None,
    variant: Annotated[str | None, typer.Option(help="one of the recipe's grid; see hybridlm recipes RECIPE")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print parameters, FLOPs, tokens and memory, and stop")
    ] = False,
) -> None:
    """Train a recipe, from its latest checkpoint if there is one, then score it.

    One process by itself; many with torchrun or deepspeed in front of the same command line.
    """
    from ..lm.recipe.recipe import Recipe

    given = list(overrides or ())
    if variant is not None:
        chosen = Recipe.load(recipe).variant(variant).overrides
        _console().print(f"variant {variant}: {shlex.join(chosen)}", highlight=False, soft_wrap=True)
        given = [*chosen, *given]
    if (Path(recipe) / "recipe.yaml").is_file():
        loaded = Recipe.load(Path(recipe) / "recipe.yaml", [*given, f"train.out={recipe}"])
    else:
        loaded = Recipe.load(recipe, given)
    if dry_run:
        from .summary import print_summary

        return print_summary(loaded, _console())
    from .pretrain import pretrain

    pretrain(loaded, _console())


@app.command("eval")
def evaluate(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. eval.needles.lengths=[512,1024]")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="recall, commonsense, long, probes or all")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="comma-separated; default without --suite: piqa,arc_challenge")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="documents per task; default: all")] = None,
    num_fewshot: Annotated[int, typer.Option(min=0, help="solved questions before each")] = 0,
    fewshot_seed: Annotated[int | None, typer.Option(help="draw them for each question; default: the first")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="tokens per input; default: the context")] = None,
    on_long: Annotated[
        Literal["truncate", "error"], typer.Option(help="longer inputs: truncate, counted in the table, or error")
    ] = "truncate",
    batch_tokens: Annotated[
        str | None, typer.Option(help="padded tokens per forward, or auto: by free memory; default: the recipe's")
    ] = None,
) -> None:
    """Score a run on a suite or tasks; the tables and RUN/eval/CHECKPOINT/*.json carry standard errors."""
    budget = _budget(batch_tokens)
    _open(run)
    from .score import run_suite

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not (names or suite):
        names = ["piqa", "arc_challenge"]
    run_suite(
        run,
        suite,
        names,
        limit=limit,
        batch_tokens=budget,
        max_length=max_length,
        num_fewshot=num_fewshot,
        fewshot_seed=fewshot_seed,
        on_long=on_long,
        overrides=overrides or [],
        console=_console(),
    )


@app.command("mqar", help="The same as synthetic, under its first name.")
@app.command("synthetic")
def synthetic(
    recipe: RecipeName,
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="models that train at the same time, on a thread each")] = 2,
    only: Only = None,
    out: Annotated[Path | None, typer.Option(help="folder of results and plots; default: runs/{name}")] = None,
) -> None:
    """Train small models on synthetic tasks, such as MQAR, over a grid; goes on where it stopped."""
    _find(recipe, overrides)
    from .synthetic import run_synthetic

    run_synthetic(recipe, overrides or [], jobs, only, out, _console())


@convert_app.command("llama", help="The same as `convert checkpoint`, by its first name.")
@convert_app.command("checkpoint")
def convert_checkpoint(
    src: Annotated[str, typer.Argument(metavar="SRC", help="a checkpoint folder with config.json, or a .gguf file")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="the run folder to make")],
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as stored")] = None,
) -> None:
    """Llama, Mistral, Qwen2, Qwen3, Qwen3.5 or OLMo Hybrid from disk: a run to score, to sample from or to train on."""
    from .convert import convert_checkpoint as convert

    convert(src, dst, dtype, _console())


@app.command()
def export(
    run: RunFolder,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="the folder to make")],
    format: Annotated[str, typer.Option(help="auto, llama, olmo_hybrid, qwen3_5 or hybridlm")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as trained")] = None,
) -> None:
    """Write a run as a folder that transformers loads: Llama family, OLMo Hybrid, Qwen3.5, or our own model type."""
    _open(run)
    from .export import export_run

    export_run(run, dst, format, dtype, _console())


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="text to continue")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continue a prompt, printing the text as it is drawn."""
    _open(run)
    from .sample import stream

    stream(run, prompt, max_new_tokens, temperature, top_p, seed, lambda text: print(text, end="", flush=True))
    print()


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="folders of runs, or of sweeps by hybridlm synthetic")
    ],
    out: Annotated[Path | None, typer.Option(help="the page; default: report.html in the first folder")] = None,
) -> None:
    """One HTML page, complete in itself, over one run or several side by side; and a table of them here."""
    from .report import report_runs

    report_runs(runs, out, _console())


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="the recipe whose variants to compare")] = None,
    only: Only = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="the variants as a Markdown table")] = False,
) -> None:
    """List the recipes that come with the package, or one recipe's variants by size, state and FLOPs."""
    if name:
        _find(name, [])
    from .recipes import list_recipes, show_recipe

    if name:
        show_recipe(name, only, markdown, _console())
    else:
        list_recipes(_console())


@app.command()
def doctor(
    build: Annotated[bool, typer.Option("--build", help="compile the native CPU kernels, and no report")] = False,
) -> None:
    """Versions, devices, kernel backends, stale build locks, and what to do about each problem."""
    from .doctor import build_native, run_doctor

    if build:
        return build_native(_console())
    raise typer.Exit(run_doctor(_console()))


@bench_app.command("ops")
def bench_ops(
    threads: Annotated[list[int] | None, typer.Option(min=1, help="thread counts; default: 1 and 2")] = None,
    repeats: Annotated[int, typer.Option(min=2, help="alternating runs of each side")] = 30,
    chunk_size: Annotated[int, typer.Option(help="tokens per chunk of our side")] = 64,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers here")] = None,
) -> None:
    """Every operator's CPU backends against transformers and flash-linear-attention, in turn in one process."""
    from .bench_ops import bench_ops as measure

    result = measure(tuple(threads or (1, 2)), repeats, chunk_size=chunk_size, console=_console())
    if json_file:
        json_file.write_text(json.dumps(result, indent=1))


@bench_app.command("train")
def bench_train(
    steps: Annotated[int, typer.Option(min=2, help="timed steps of each model")] = 12,
    precision: Annotated[str, typer.Option(help="fp32 or bf16")] = "fp32",
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """The demo model's training step against transformers' OlmoHybrid of the same size."""
    from .bench_train import bench

    bench(steps, precision, threads, _console())


@bench_app.command("decode")
def bench_decode(
    subject: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help="a run folder, or a recipe with random weights")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="sequences at once; default: 1 and 8")] = None,
    context: Annotated[list[int] | None, typer.Option(min=2, help="tokens before; default: 256 and 4096")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each side, 4 tokens a turn")] = 12,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers here")] = None,
) -> None:
    """Greedy decoding against transformers with the same weights, prefill left out."""
    from dataclasses import asdict

    from .bench_decode import bench_decode as measure

    rows = measure(subject, batch or [1, 8], context or [256, 4096], rounds, threads, _console())
    if json_file:
        json_file.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1))


@bench_app.command("eval")
def bench_eval(
    run: RunFolder,
    tasks: Annotated[str, typer.Option(help="comma-separated")] = "piqa,arc_challenge",
    limit: Annotated[int, typer.Option(min=1, help="questions of each task")] = 100,
    num_fewshot: Annotated[int, typer.Option(min=0, help="solved questions before each")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    peer: Annotated[bool, typer.Option(help="beside lm-eval's hf backend")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers here")] = None,
) -> None:
    """Scoring with and without shared prefixes and by lm-eval's hf backend, in turn, with equal scores."""
    _open(run)
    from .bench_eval import bench_eval as measure

    result = measure(run, tasks.split(","), limit, num_fewshot, threads, peer, _console())
    if json_file:
        json_file.write_text(json.dumps(result, indent=1))


@bench_app.command("capacity")
def bench_capacity(
    key_dim: Annotated[int, typer.Option(min=1, help="channels of a key")] = 64,
    labels: Annotated[int, typer.Option(min=2, help="different values")] = 64,
    trials: Annotated[int, typer.Option(min=1, help="draws of keys and labels")] = 20,
    decay: Annotated[float, typer.Option(help="of the gated operators, per write")] = 0.99,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """How many random associations each operator holds before it answers wrongly; nothing is trained."""
    from ..eval.synthetic.capacity import capacity

    _console().print(capacity(key_dim, labels, trials=trials, decay=decay, seed=seed).table())


@bench_app.command("random-features")
def bench_random_features(
    heads: Annotated[int, typer.Option(min=1, help="of random addressing")] = 60,
    dim: Annotated[int, typer.Option(min=1, help="channels of an input")] = 8,
    keys: Annotated[int, typer.Option(min=1, help="inputs beside the query")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="draws of heads, inputs and targets")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="the first of them")] = 0,
) -> None:
    """What attention learns whose queries and keys stay as drawn, beside a random ReLU network; ridge regression."""
    from ..eval.synthetic.random_features import Sizes, measure

    _console().print(measure(seed, seeds, Sizes(heads, dim, keys)).table())


@bench_app.command("study")
def bench_study(
    recipe: RecipeName,
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option(min=1, help="variants that train at the same time, on a thread each")] = 2,
    only: Only = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs and tables; default: runs/{name}")] = None,
) -> None:
    """Train every variant of a grid recipe and table scores, speed, parameters and state; goes on where it stopped."""
    _find(recipe, overrides)
    from .study import study

    study(recipe, overrides or [], jobs, only, out, _console())


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
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers here")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="draw bytes and bounds against the head dim")] = None,
    budget_check: Annotated[
        bool, typer.Option("--budget-check", help="only hold our kernels against tools/kernel_report/budgets.json")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="only rewrite those budgets")] = False,
) -> None:
    """Registers, spills, bytes, launches, host time and time bounds of every Triton kernel; needs no GPU."""
    from .kernel_report.report import PLOT_DIMS, check_budgets, report_kernels

    if budget_check or record:
        raise typer.Exit(0 if check_budgets(_console(), record) else 1)
    dims = [int(dim) for dim in head_dims.split(",")] if head_dims else list(PLOT_DIMS) if plot_file else []
    report_kernels(op or [], targets.split(","), peer, dims, json_file, plot_file, _console())


def _budget(text: str | None) -> int | Literal["auto"] | None:
    """The value of --batch-tokens."""
    if text is None or text == "auto":
        return text
    if not (text.isdecimal() and int(text)):
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number above 0", param_hint="--batch-tokens")
    return int(text)


def _open(run: Path) -> None:
    """Raises ConfigError where there is no run, before anything heavy is imported."""
    from ..lm.run import Run

    Run(run)


def _find(recipe: str, overrides: list[str] | None) -> None:
    """Raises ConfigError where there is no recipe or an override is none, before anything heavy is imported."""
    from ..lm.recipe.files import load_tree

    load_tree(recipe, overrides or ())


def _console():
    from rich.console import Console

    return Console()


def main() -> None:
    """Entry point: a problem the user can fix is one line on stderr and exit code 1, not a traceback."""
    from ..lm.parts.errors import UserError

    try:
        app()
    except UserError as error:
        print(f"hybridlm: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"hybridlm: {error.filename or 'disk'}: {error.strerror}; free some and repeat", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("hybridlm: interrupted; the same command goes on from the latest checkpoint", file=sys.stderr)
        sys.exit(130)
