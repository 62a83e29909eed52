"""`hybridlm train`: prepare the data, train, then score what came out."""

import logging
import os
import time

from rich.console import Console

from ..eval.console import stage
from ..eval.measurement import hooks, measurements_of, weightless
from ..lm.data.prepare import prepare
from ..lm.data.tokenizer import JSON_FILE, MODEL_FILE, Tokenizer
from ..lm.recipe.layers import describe
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run
from ..lm.train.faults import on_main, together
from ..lm.train.loop import Trainer
from .finish import finish
from .measure import prepare_all


def pretrain(recipe: Recipe, console: Console) -> Run:
    """Run a recipe to its end, resuming if the run folder has a checkpoint. Every process of a launch calls this."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # its hint that triton is missing
    started = time.perf_counter()
    if os.environ.get("RANK", "0") != "0":
        console = Console(quiet=True)  # one process of a launch speaks
    with together():
        with stage(console, f"preparing data of {recipe.name}"):
            prepared = prepare(recipe)
        run = Run.create(recipe)
        tokenizer = _asked_with(run, prepared.tokenizer)
        tokenizer.save(run.folder / "tokenizer")
        asked = measurements_of(recipe, tokenizer)
    if asked:
        on_main(lambda: prepare_all(asked, weightless(recipe.model), console))
    trainer = Trainer(recipe, prepared, run, console, hooks(recipe, asked, run.folder / "eval"))
    if not trainer.engine.is_main:
        trainer.run()
        return run
    parameters = sum(p.numel() for p in trainer.model.parameters())
    console.print(
        f"{recipe.name}: {describe(recipe.model.layer_specs())} | {parameters / 1e6:.2f} M parameters | "
        f"{trainer.engine.world_size} process(es) on {trainer.engine.device} | {recipe.train.precision} | "
        f"ready after {time.perf_counter() - started:.1f} s",
        highlight=False,
    )
    trainer.run()
    finish(run, prepared, asked, console)
    return run


def _asked_with(run: Run, packed_with: Tokenizer) -> Tokenizer:
    """The tokenizer that prompts are made with: an import that is trained further is asked as it was before."""
    folder = run.folder / "tokenizer"
    # the file is written last: a run that another process is just beginning has none yet
    begun = any((folder / name).is_file() for name in (MODEL_FILE, JSON_FILE))
    if begun and (kept := run.tokenizer()).fingerprint == packed_with.fingerprint:
        return kept
    return packed_with
