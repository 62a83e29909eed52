"""The command line: one verb per thing a user does, each a thin call. Heavy imports happen inside the verbs."""

import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from .arguments import (
    MOST,
    Only,
    Overrides,
    RecipeName,
    RunFolder,
    SyntheticOverrides,
    console,
    find_recipe,
    one_line,
    open_run,
)
from .cli_bench import bench_app
from .cli_convert import convert_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench_app, name="bench")
app.add_typer(convert_app, name="convert")


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
        fetch_sources(names, cache.expanduser(), console())
    else:
        list_sources(console())


@app.command()
def prepare(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Train the tokenizer and pack the corpus of a recipe; does nothing when that is done."""
    from ..lm.recipe.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from ..lm.data.prepare import prepare as run_prepare

    console().print(f"prepared: {run_prepare(loaded).folder}", highlight=False, markup=False)


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
    from ..lm.parts.errors import ConfigError
    from ..lm.recipe.recipe import Recipe
    from ..lm.run import recipe_of

    given = list(overrides or ())
    if variant is not None:
        chosen = Recipe.load(recipe).variant(variant).overrides
        console().print(f"variant {variant}: {shlex.join(chosen)}", highlight=False, markup=False, soft_wrap=True)
        given = [*chosen, *given]
    folder = Path(recipe) if (Path(recipe) / "recipe.yaml").is_file() else None
    loaded = recipe_of(folder, given) if folder else Recipe.load(recipe, given)
    if folder and given and loaded.train.out != recipe_of(folder).train.out:
        raise ConfigError(
            f"train.out={loaded.train.out!r}: the run goes on in {str(folder)!r}; leave it out, or give a recipe"
        )
    if dry_run:
        from .summary import print_summary

        return print_summary(loaded, console())
    from .pretrain import pretrain

    pretrain(loaded, console(), folder)


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
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="documents per task, needles per length, stretches; default: all"),
    ] = None,
    num_fewshot: Annotated[int, typer.Option(min=0, max=1000, help="solved questions before each")] = 0,
    fewshot_seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="draw them for each question; default: the first")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="tokens per input; default: the context")
    ] = None,
    on_long: Annotated[
        Literal["truncate", "error"], typer.Option(help="longer inputs: truncate, counted in the table, or error")
    ] = "truncate",
    chat: Annotated[bool, typer.Option("--chat", help="write prompts with the run's chat template")] = False,
    batch_tokens: Annotated[
        str | None, typer.Option(help="padded tokens per forward, or auto: by free memory; default: the recipe's")
    ] = None,
) -> None:
    """Score a run on a suite or tasks; the tables and RUN/eval/CHECKPOINT/*.json carry standard errors."""
    budget = _budget(batch_tokens)
    open_run(run)
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
        chat=chat,
        overrides=overrides or [],
        console=console(),
    )


@app.command("mqar", help="The same as synthetic, under its first name.")
@app.command("synthetic")
def synthetic(
    recipe: RecipeName,
    overrides: SyntheticOverrides = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=1024, help="models that train at the same time, on a thread each")
    ] = 2,
    only: Only = None,
    out: Annotated[Path | None, typer.Option(help="folder of results and plots; default: runs/{name}")] = None,
) -> None:
    """Train small models on synthetic tasks, such as MQAR, over a grid; goes on where it stopped."""
    find_recipe(recipe, overrides)
    from .synthetic import run_synthetic

    run_synthetic(recipe, overrides or [], jobs, only, out, console())


@app.command()
def export(
    run: RunFolder,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="the folder to make")],
    format: Annotated[str, typer.Option(help="auto, llama, olmo_hybrid, qwen3_5 or hybridlm")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as trained")] = None,
    drop_heads: Annotated[
        bool, typer.Option("--drop-heads", help="all heads where a router chose some: another function, a Llama again")
    ] = False,
) -> None:
    """Write a run as a folder that transformers loads: Llama family, OLMo Hybrid, Qwen3.5, or our own model type."""
    open_run(run)
    from .export import export_run

    export_run(run, dst, format, dtype, console(), drop_heads)


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="text to continue; empty: a text from its beginning")],
    max_new_tokens: Annotated[int, typer.Option(help="tokens to add at most")] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.8,
    top_p: Annotated[float, typer.Option(help="draw from the likeliest tokens that reach this probability")] = 0.95,
    seed: Annotated[int, typer.Option(help="of the draws, 0 ... 2^64 - 1")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="the prompt is a message, and the answer alone is printed")
    ] = False,
) -> None:
    """Continue a prompt, printing the text as it is drawn; a terminal gets control characters written out."""
    open_run(run)
    from ..lm.parts.terminal import write
    from .sample import stream

    stream(run, prompt, max_new_tokens, temperature, top_p, seed, lambda text: write(text, sys.stdout), chat=chat)
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

    report_runs(runs, out, console())


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="the recipe whose variants to compare")] = None,
    only: Only = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="the variants as a Markdown table")] = False,
) -> None:
    """List the recipes that come with the package, or one recipe's variants by size, state and FLOPs."""
    if name:
        find_recipe(name, [])
    from .recipes import list_recipes, show_recipe

    if name:
        show_recipe(name, only, markdown, console())
    else:
        list_recipes(console())


@app.command()
def doctor(
    build: Annotated[bool, typer.Option("--build", help="compile the native CPU kernels, and no report")] = False,
) -> None:
    """Versions, devices, kernel backends, stale build locks, and what to do about each problem."""
    from .doctor import build_native, run_doctor

    if build:
        return build_native(console())
    raise typer.Exit(run_doctor(console()))


def _budget(text: str | None) -> int | Literal["auto"] | None:
    """The value of --batch-tokens."""
    if text is None or text == "auto":
        return text
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:20]) <= MOST):
        raise typer.BadParameter(
            f"{text[:80]!r} is neither auto nor a whole number above 0", param_hint="--batch-tokens"
        )
    return int(text)


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    """A warning of ours is one line on stderr; others also say where they come from."""
    from ..lm.parts.errors import Caution
    from ..lm.parts.terminal import write

    ours = issubclass(category, Caution)
    write(f"hybridlm: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno), sys.stderr)


KEPT = {
    "train": "what was saved is kept; the same command goes on from there",
    "prepare": "what is packed is kept; the same command goes on",
    "eval": "what is measured and answered is kept; the same command goes on",
    "fetch": "files that are whole are kept; the same command goes on",
    "synthetic": "finished runs are kept; the same command goes on",
    "mqar": "finished runs are kept; the same command goes on",
    "convert": "nothing was made",
    "export": "nothing was made",
}
"""What a verb that is interrupted leaves."""


def main() -> None:
    """Entry point: a problem the user can fix is one line on stderr and exit code 1, not a traceback.

    A signal is one line too, its code 128 and its number. Of several processes of a launch the first one speaks.
    """
    from ..lm.parts.errors import UserError

    warnings.showwarning = _show
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except UserError as error:
        _end(error, str(error), error.code)
    except OSError as error:
        _end(error, one_line(error), 1)
    except SystemExit as end:  # typer makes one of KeyboardInterrupt
        if end.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) and _first():
            verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            name = "interrupted" if end.code == 128 + signal.SIGINT else "terminated"
            print(f"hybridlm: {name}" + (f"; {KEPT[verb]}" if verb in KEPT else ""), file=sys.stderr)
        raise


def _end(error: Exception, line: str, code: int) -> NoReturn:
    """Exit with the line. What every process of a launch was told, the first one says."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..lm.train.faults import told

        shared = told(error)
    else:
        shared = False
    if not shared or _first():
        from ..lm.parts.terminal import write

        write(f"hybridlm: {line}\n", sys.stderr)
    sys.exit(code)


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"
