"""Everything a recipe's data needs, done once: tokenizer, packed training sources, packed validation sets."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from ..parts.errors import DataError
from ..parts.terminal import PlainConsole, shown
from ..run import latest_checkpoint
from .inventory import Inventory
from .overlap import overlaps
from .packed import mixture_fingerprint
from .preparation import Preparation, Prepared, Task, mixture_weights
from .waiting import hold

if TYPE_CHECKING:
    from ..recipe.data import DataConfig
    from ..recipe.recipe import Recipe

__all__ = ["Prepared", "prepare"]


def prepare(recipe: "Recipe", *, quiet: bool = False, run: Path | None = None) -> Prepared:
    """Fetch, train or load the tokenizer, and pack, below {data.cache}/prepared; what is there already is kept.

    What is finished is opened without a lock or a write, and without reading a source's files. Else one of the
    processes that call this at once does the work and the others wait. run: the folder of the run that is to go on, by
    default the recipe's. Raises ConfigError or DataError, one line each.
    """
    console = PlainConsole(stderr=True, quiet=quiet)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    mixture_weights(recipe.data.train, [1] * len(recipe.data.train))  # raises now what it would after hours of packing
    folder = Path(recipe.data.cache).expanduser() / "prepared"
    inventory = Inventory(folder)
    work = Forms(recipe, inventory, say, _trained_on(run or recipe.run_folder()))
    found = work.finished() or _made(work, folder, console, say)
    if os.environ.get("RANK", "0") == "0":  # one process of a launch speaks
        for line in _notes(recipe.data, found, inventory):
            say(line)
    return found


class Forms:
    """The data in its present form, or in the old one where a run goes on that was trained on that."""

    def __init__(self, recipe: "Recipe", inventory: Inventory, say: Callable[[str], None], trained_on: str | None):
        self.new, self.old = (Preparation(recipe, inventory, say, old=old) for old in (False, True))
        self.trained_on = trained_on

    def finished(self) -> Prepared | None:
        """What is complete already."""
        found = self.new.open()
        if self.trained_on is None or (found and self._fits(found)):
            return found
        before = self.old.open()
        return before if before and self._fits(before) else before and found

    def make(self, task: Task) -> Prepared:
        """Do what is not finished. Data that fit the run in no form are left for the loader to refuse."""
        made = self.new.make(task)
        if self.trained_on is None or self._fits(made) or not self.old.differs(self.new):
            return made
        before = self.old.make(task)
        return before if self._fits(before) else made

    def _fits(self, found: Prepared) -> bool:
        return mixture_fingerprint(found.train, found.weights) == self.trained_on


def _trained_on(run: Path) -> str | None:
    """The fingerprint of the mixture that the run's newest checkpoint was trained on; None of a run that begins."""
    newest = latest_checkpoint(run / "checkpoints")
    if newest is None or not (newest / "state.json").is_file():
        return None
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    return state.get("extra", {}).get("loader", {}).get("fingerprint")  # none of an imported model


def _made(work: Forms, folder: Path, console: Console, say: Callable[[str], None]) -> Prepared:
    """Make what is not finished, or wait for the process that does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "it cannot be written to", str(folder))
        first_of_node = os.environ.get("LOCAL_RANK", "0") == "0"
        with hold(folder / ".lock", say if first_of_node else lambda line: None), _progress(console) as task:
            work.new.inventory.reload()
            work.new.learn(task("reading files that are new"))
            return work.finished() or work.make(task)
    except OSError as error:
        found = _unwritten(work)
        if found:
            return found
        raise DataError(
            f"data.cache: {error.filename or folder}: {error.strerror or error}; make room, or run `hybridlm prepare` "
            "where the cache can be written to"
        ) from None


def _unwritten(work: Forms) -> Prepared | None:
    """What is complete in a cache that cannot be written to, though the sources' files have to be read to know it."""
    work.new.inventory.writable = False
    work.new.learn()
    return work.finished()


def _notes(data: "DataConfig", prepared: Prepared, inventory: Inventory) -> Iterator[str]:
    for name, path in inventory.gone.items():
        yield f"{name}: no file at {path} any more; what was made of it before is used"
    train = [(source.name, dataset) for source, dataset in zip(data.train, prepared.train, strict=True)]
    for name, sources in data.valid.items():
        held = [(source.name, dataset) for source, dataset in zip(sources, prepared.valid[name], strict=True)]
        for valid_source, train_source, both, of in overlaps(train, held):
            yield (
                f"warning: validation set {name!r}: {both} of the {of} documents of source {valid_source!r} are also in"
                f" training source {train_source!r}; their loss is too low: select others for one of the two"
            )


@contextmanager
def _progress(console: Console) -> Iterator[Task]:
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, disable=console.quiet) as progress:

        def task(description: str) -> Callable[[int], None]:
            line = progress.add_task(shown(description), total=None)
            return lambda n_bytes: progress.update(line, advance=n_bytes)

        yield task
