"""What `hybridlm train` needs of other runs, checked before work: one to start from, and a teacher."""

from pathlib import Path
from typing import Any

from ..eval.measurement import weightless
from ..lm.model import HybridLM
from ..lm.parts.errors import ConfigError, concerning
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run
from ..lm.train.faults import on_main, together
from ..lm.train.freeze import Freezing
from ..lm.train.start import Start, newest_step, source_of, starts_from


def check_start(recipe: Recipe, run: Run) -> None:
    """Raises ConfigError where the recipe freezes what the model has not, or cannot start from the run it names."""
    if not (recipe.freeze or recipe.init):
        return
    model = weightless(recipe.model)
    if init := starts_from(recipe, run):
        _, checkpoint = source_of(init)
        Start(init, model, checkpoint)
    Freezing(model, recipe.freeze, recipe.train.steps)


def teaching(recipe: Recipe, run: Run) -> Run | None:
    """The run that teaches, None without one or where nothing is left to learn. Raises ConfigError where it is none."""
    if recipe.distill is None or (newest_step(run) or 0) >= recipe.train.steps:
        return None
    with concerning("distill.teacher"):
        found = Run(Path(recipe.distill.teacher).expanduser())
        if found.folder.resolve() == run.folder.resolve():
            raise ConfigError(
                f"run {str(found.folder)!r}: is the one that is trained, whose weights change; give another run, such "
                "as the dense one that it was made of"
            )
        found.newest_checkpoint()
    return found


def load_teacher(run: Run | None) -> tuple[HybridLM | None, dict[str, Any]]:
    """The teacher with the weights of its newest checkpoint, and what of it belongs to the origins; collective."""
    if run is None:
        return None, {}
    name = on_main(lambda: run.newest_checkpoint().name)
    with together(), concerning("distill.teacher"):
        model = HybridLM.from_run(run)
        if run.newest_checkpoint().name != name:
            raise ConfigError(f"run {str(run.folder)!r}: it is being trained; start again when it has ended")
    return model, {"teacher": {"run": str(run.folder.resolve()), "name": run.recipe.name, "checkpoint": name}}
