"""`hybridlm train`: prepare the data, train, then score what came out."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ..eval.console import stage
from ..eval.measurement import hooks, measurements_of, weightless
from ..lm.data.prepare import prepare
from ..lm.data.tokenizer import Tokenizer
from ..lm.recipe.layers import describe
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run, has_tokenizer
from ..lm.train.changes import note_changes
from ..lm.train.distill import check_teacher
from ..lm.train.faults import on_main, together
from ..lm.train.lock import held
from ..lm.train.loop import Trainer
from ..lm.train.origins import keep_origins
from .finish import finish
from .measure import prepare_all
from .summary import check_memory
from .tune import check_start, load_teacher, teaching


def pretrain(recipe: Recipe, console: Console, folder: Path | None = None) -> Run:
    """Run a recipe to its end, resuming if the run folder has a checkpoint. Every process of a launch calls this.

    folder: of the run, by default the recipe's. Nothing in it changes before all has been checked: a recipe that does
    not fit what is there leaves it as it was.
    """
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # its hint that triton is missing
    started = time.perf_counter()
    if os.environ.get("RANK", "0") != "0":
        console = Console(quiet=True)  # one process of a launch speaks
    run = Run.of(recipe, folder)
    with together():
        taught_by = teaching(recipe, run)
        check_memory(recipe, taught_by and taught_by.recipe.model)
        check_start(recipe, run)
        with stage(console, f"preparing data of {recipe.name}"):
            prepared = prepare(recipe, run=run.folder)
        if taught_by is not None:
            check_teacher(taught_by, recipe, prepared.tokenizer)
        tokenizer = _asked_with(run, prepared.tokenizer)
        asked = measurements_of(recipe, tokenizer)
    with held(run.folder):  # after the data: processes that pack them would inherit the lock
        if asked:
            on_main(lambda: prepare_all(asked, weightless(recipe.model), console))
        teacher, origins = load_teacher(taught_by)
        trainer = Trainer(recipe, prepared, run, console, hooks(recipe, asked, run.folder / "eval"), teacher)
        origins |= trainer.origins
        if trainer.engine.is_main:
            _announce(recipe, trainer, time.perf_counter() - started, console)
        if trainer.step < recipe.train.steps:
            on_main(lambda: _begin(run, trainer.step, tokenizer, origins, console))
        else:
            console.print(f"{run.folder}: nothing to train, at step {trainer.step} already", highlight=False)
        trainer.run()
        if trainer.engine.is_main:
            finish(run, prepared, asked, console)
    return run


def _asked_with(run: Run, packed_with: Tokenizer) -> Tokenizer:
    """The tokenizer that prompts are made with: an import that is trained further is asked as it was before."""
    if has_tokenizer(run.folder) and (kept := run.tokenizer()).fingerprint == packed_with.fingerprint:
        return kept
    return packed_with


def _announce(recipe: Recipe, trainer: Trainer, seconds: float, console: Console) -> None:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    console.print(
        f"{recipe.name}: {describe(recipe.model.layer_specs())} | {parameters / 1e6:.2f} M parameters | "
        f"{trainer.engine.world_size} process(es) on {trainer.engine.device} | {recipe.train.precision} | "
        f"ready after {seconds:.1f} s",
        highlight=False,
    )


def _begin(run: Run, step: int, tokenizer: Tokenizer, origins: dict[str, Any], console: Console) -> None:
    """Write what a run folder says of its run, and print what is not as it was before the step it goes on from."""
    for line in note_changes(run, step, origins) if step else ():
        console.print(line, highlight=False, soft_wrap=True)
    for name, origin in origins.items() if not step else ():
        console.print(f"{name}: {origin['checkpoint']} of {origin['run']}", highlight=False, soft_wrap=True)
    keep_origins(run, origins)
    run.keep()
    tokenizer.save(run.folder / "tokenizer")
