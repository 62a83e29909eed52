"""lm-eval tasks on a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..lm.config import Recipe
from ..lm.data.tokenizer import Tokenizer
from ..lm.model import HybridLM
from ..lm.run import Run

if TYPE_CHECKING:
    from ..eval.scores import Scores


def score_tasks(folder: Path, tasks: list[str], limit: int | None, batch_tokens: int, console: Console) -> "Scores":
    """Score the newest checkpoint, print the table, and keep it as RUN/eval/step-N.json."""
    run = Run(folder)
    newest = run.newest_checkpoint().name
    recipe = run.recipe.model_copy(update={"eval": run.recipe.eval.model_copy(update={"batch_tokens": batch_tokens})})
    scores = task_scores(run.load_model(), run.tokenizer(), recipe, tasks, limit, newest)
    scores.save(run.folder / "eval" / f"{newest}.json")
    console.print(scores.table())
    return scores


def task_scores(
    model: HybridLM, tokenizer: Tokenizer, recipe: Recipe, tasks: list[str], limit: int | None, checkpoint: str = ""
) -> "Scores":
    """Score `model` as it stands; its mode and the random state are left as they were."""
    from ..eval.harness import evaluate

    return evaluate(
        model,
        tokenizer,
        tasks,
        limit=limit,
        batch_tokens=recipe.eval.batch_tokens,
        max_length=recipe.model.context,
        cache=Path(recipe.data.cache).expanduser(),
        seed=recipe.seed,
        checkpoint=checkpoint,
    )
