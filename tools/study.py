"""`hybridlm bench study`: every variant of a grid recipe trained in a process of its own, and one table of them all."""

import json
import os
import platform
import shlex
import signal
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from ..eval.jobs import Command, run_commands
from ..lm.data.files import write_atomically
from ..lm.data.prepare import prepare
from ..lm.parts.errors import ConfigError, UserError
from ..lm.recipe.files import as_override
from ..lm.recipe.grid import Variant
from ..lm.recipe.recipe import Recipe
from ..lm.run import Run
from .recipes import select
from .records import valid_scores
from .study_tables import markdown, show
from .summary import LONG, size_of

RESULT = "study.json"
"""Written into a variant's run folder when its process has ended well; what makes it finished."""
DECISIVE = ("seed", "model", "data", "optim", "train")
"""Sections of a recipe on which a result depends."""


@dataclass(frozen=True)
class Job:
    """One variant: what is typed after `hybridlm`, what it says, and where it runs."""

    variant: Variant
    arguments: list[str]
    recipe: Recipe
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).is_file()


def study(name: str, overrides: list[str], jobs: int, only: str | None, out: Path | None, console: Console) -> Path:
    """Train the variants that are not finished, `jobs` at a time, and write OUT/results.json and OUT/results.md.

    A variant goes on from its newest checkpoint, so the same command continues a study that was stopped. One that fails
    does not stop the others. Raises UserError at the end when some failed, ConfigError before anything starts when OUT
    holds runs of another recipe. Returns OUT, by default the run folder of the recipe without a variant.
    """
    base = Recipe.load(name, overrides)
    out = out or base.run_folder()
    wanted = {variant.name for variant in select(base, only)}
    every = [_job(name, variant, overrides, out) for variant in base.variants().values()]
    for job in every:
        _check_folder(job)
    todo = [job for job in every if job.variant.name in wanted and not job.finished]
    console.print(
        f"{base.name}: {len(wanted)} variants, {len(wanted) - len(todo)} finished already",
        highlight=False,
        markup=False,
    )
    if todo:
        prepare(base)
        out.mkdir(parents=True, exist_ok=True)
    failed = _run_all(todo, jobs, console)
    rows = [{"of": job.variant.of, **json.loads((job.folder / RESULT).read_text())} for job in every if job.finished]
    command = ["hybridlm", "bench", "study", name, *overrides, "--jobs", str(jobs)]
    heading = {"command": shlex.join(command), "hardware": hardware(), "recipe": base.name}
    if rows:
        write_atomically(out / "results.json", json.dumps({**heading, "rows": rows}, indent=1).encode())
        write_atomically(out / "results.md", markdown(heading, rows).encode())
        show(rows, console)
        console.print(f"tables: {out / 'results.md'}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        lines = "".join(f"\n  {job.variant.name}: {_last_line(job.log)} ({job.log})" for job in failed)
        raise UserError(f"study: {len(failed)} of {len(wanted)} variants failed; the same command tries again{lines}")
    return out


def _job(name: str, variant: Variant, overrides: list[str], out: Path) -> Job:
    folder = out / variant.name
    given = [*variant.overrides, *overrides, "train.threads=1", as_override("train.out", str(folder))]
    return Job(variant, ["train", name, *given], Recipe.load(name, given), folder)


def _check_folder(job: Job) -> None:
    """A result counts only for the recipe that it was trained by."""
    if not (job.folder / "recipe.yaml").is_file():
        return
    there, here = (recipe.model_dump(exclude={"train": {"out"}}) for recipe in (Run(job.folder).recipe, job.recipe))
    changed = [part for part in DECISIVE if there[part] != here[part]]
    if changed:
        raise ConfigError(
            f"{job.folder}: a run of another recipe lies there, it differs in {', '.join(changed)}; "
            "give the study another folder with --out, or remove this one"
        )


def command(job: Job) -> list[str]:
    """The process that trains a variant."""
    return [sys.executable, "-m", "hybridlm", *job.arguments]


def _run_all(todo: list[Job], jobs: int, console: Console) -> list[Job]:
    """Run the jobs, at most `jobs` at once; returns those that failed. Stopped, it stops what it has started."""
    failed = []
    started, before = time.monotonic(), signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with closing(run_commands(lambda job: Command(command(job), job.log), todo, jobs)) as outcomes:
            for n_ended, (job, seconds, _, error) in enumerate(outcomes, 1):
                if error:
                    failed.append(job)
                else:
                    result = {**collect(job), "wall_seconds": seconds}  # of the process that ended it
                    write_atomically(job.folder / RESULT, json.dumps(result, indent=1).encode())
                passed = f"{n_ended}/{len(todo)}, {(time.monotonic() - started) / 60:.1f} min"
                ended = f"{'FAILED' if error else 'done'} after {seconds:.0f} s"
                console.print(f"{passed} | {job.variant.name}: {ended}", highlight=False, markup=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def collect(job: Job) -> dict[str, Any]:
    """What a finished variant is compared by: scores and speed from its run folder, sizes from its recipe."""
    size, recipe = size_of(job.recipe), job.recipe
    seconds = [record["seconds"] for record in Run(job.folder).metrics() if record["kind"] == "train"]
    return {
        "variant": job.variant.name,
        "mixer": job.variant.mixer,
        "ratio": job.variant.ratio,
        "layers": size.layers,
        "valid": valid_scores(Run(job.folder)),
        "tokens_per_second": recipe.train.batch * recipe.model.context / median(seconds),
        "train_seconds": sum(seconds),
        "tokens": size.tokens,
        "parameters": size.parameters,
        "non_embedding": size.non_embedding,
        "flops_per_token": size.flops_per_token,
        "state_at_context": size.state_bytes(recipe.model.context),
        "state_at_1m": size.state_bytes(LONG),
    }


def hardware() -> str:
    """The machine that the times belong to."""
    import torch

    if torch.cuda.is_available():
        where = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        where = f"{os.cpu_count()} x {_cpu_name()}"
    return f"{where}, torch {torch.__version__}, one thread per run"


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
