"""What a run ends with: validation beside its yardsticks, task scores, a sample, the table and the plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from ..eval.console import stage
from ..eval.measurement import Measurement
from ..lm.data.prepare import Prepared
from ..lm.model.loading import load_run
from ..lm.parts.errors import ConfigError
from ..lm.run import Run
from ..lm.train.telemetry import log_measured
from .measure import show
from .ngram import Yardstick, yardsticks
from .records import valid_scores
from .report import plot_runs
from .sample import stream


def finish(run: Run, prepared: Prepared, asked: Sequence[Measurement], console: Console) -> None:
    """Measure a finished run and print what came out of it."""
    evals = run.recipe.eval
    measure_newest(run, asked, console)
    if evals.prompt:
        console.print(f"\nsample after {evals.prompt!r}:", style="bold", highlight=False)
        try:
            stream(
                run,
                evals.prompt,
                120,
                0.8,
                0.95,
                run.recipe.seed,
                lambda text: console.out(text, end="", highlight=False),
            )
        except ConfigError as error:
            console.print(f"none: {error}", highlight=False)  # a run is not lost for its sample
        console.print("\n")
    if evals.yardsticks:
        compare(run, prepared, console)
    console.print(
        f"plot: {plot_runs([run], run.folder / 'plots' / 'loss.png')}", highlight=False, markup=False, soft_wrap=True
    )


def measure_newest(run: Run, asked: Sequence[Measurement], console: Console) -> None:
    """Measure the newest checkpoint, print what came out, and log the numbers as the loop does."""
    if not asked:
        return
    model, checkpoint = load_run(run), run.newest_checkpoint().name
    for one in asked:
        result = show(one, model, checkpoint, run.folder / "eval", f"measuring {one.name}", console)
        log_measured(run, int(checkpoint.removeprefix("step-")), one.name, result.values())


def compare(run: Run, prepared: Prepared, console: Console) -> None:
    """The model's validation losses beside uniform, unigram and Kneser-Ney trigram models of the same tokens."""
    with stage(console, "fitting the n-gram yardsticks"):
        measured = {
            name: yardsticks(prepared.train, sets, run.recipe.model.vocab_size) for name, sets in prepared.valid.items()
        }
    scores = valid_scores(run)
    for name, rows in measured.items():
        model = Yardstick(scores[name]["loss"], scores[name]["bits_per_byte"])
        console.print(_table(name, {**rows, run.recipe.name: model}))
        for other, yardstick in rows.items():
            gap = yardstick.nats_per_token - model.nats_per_token
            verdict = "beats" if gap > 0 else "does not beat"
            console.print(
                f"{run.recipe.name} {verdict} {other} on {name}: {gap:+.3f} nats per token",
                highlight=False,
                markup=False,
            )
    kept = {name: {row: asdict(y) for row, y in rows.items()} for name, rows in measured.items()}
    (run.folder / "yardsticks.json").write_text(json.dumps(kept, indent=1))


def _table(name: str, rows: dict[str, Yardstick]) -> Table:
    table = Table(title=f"validation set {name!r}", title_justify="left")
    table.add_column("model")
    table.add_column("bits per byte", justify="right")
    table.add_column("nats per token", justify="right")
    for label, row in rows.items():
        table.add_row(label, f"{row.bits_per_byte:.3f}", f"{row.nats_per_token:.3f}")
    return table
