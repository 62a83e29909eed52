"""The training loop: batches in, optimizer steps, validation, checkpoints, records out."""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..data.loader import Batch, Loader, valid_batches
from ..data.packed import PackedDataset
from ..data.prepare import Prepared
from ..model import HybridLM
from ..recipe.recipe import Recipe
from ..run import Run
from .checkpoint import Checkpoints
from .distill import Teacher
from .distributed import processes
from .engine import Engine
from .faults import on_main, together
from .freeze import Freezing
from .health import Health
from .schedule import learning_rate
from .signals import Signals, agreed, end
from .start import Start, source_of, starts_from
from .telemetry import Logged, Telemetry
from .vocabulary import check_same_vocabulary


@dataclass(frozen=True)
class Hook:
    """Something to measure in the loop: `measure(model, step)` returns numbers to log, every `every` steps.

    Not at the last one: what a run ends with is measured on its checkpoint, when the other processes are done waiting.
    """

    name: str
    every: int
    measure: Callable[[HybridLM, int], dict[str, float]]


@dataclass
class Totals:
    """Sums over the micro-batches of one step (or one validation set), on this process until reduced."""

    nll: Tensor | float = 0.0
    targets: int = 0
    losses: dict[str, Tensor | float] = field(default_factory=lambda: defaultdict(float))
    stats: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def add(
        self,
        loss: Tensor,
        aux: dict[str, Tensor],
        stats: dict[int, dict[str, Tensor]],
        n: int,
        terms: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Count one forward with mean loss `loss` over `n` targets; terms: what else it is a mixture of than `ce`."""
        extra = {name: value.detach().double() for name, value in (aux | dict(terms)).items()}
        own = extra["ce"] if terms else loss.detach().double() - sum(extra.values())
        self.nll += own * n
        self.targets += n
        for name, value in extra.items():
            self.losses[name] += value * n
        for layer, sums in stats.items():
            mine = self.stats.setdefault(layer, {})
            for name, value in sums.items():
                mine[name] = mine[name] + value if name in mine else value

    def reduce(self, engine: Engine, counts: Sequence[float] = ()) -> tuple["Totals", list[float]]:
        """The sums over all processes, the first that the host gets to see of them, and those of `counts` with them."""
        names = sorted(self.losses)
        sums = (self.nll, self.targets, *counts, *(self.losses[name] for name in names))
        flat = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=engine.device) for x in sums])
        nll, targets, *rest = engine.all_reduce(flat).tolist()
        counted, losses = rest[: len(counts)], rest[len(counts) :]
        stats = {i: {k: engine.all_reduce(v) for k, v in s.items()} for i, s in self.stats.items()}
        return Totals(nll, int(targets), dict(zip(names, losses, strict=True)), stats), counted

    def means(self) -> dict[str, float]:
        """Mean negative log likelihood and auxiliary losses per target."""
        n = max(self.targets, 1)
        return {"loss": float(self.nll) / n, **{name: float(value) / n for name, value in self.losses.items()}}


class Trainer:
    """One run from its first or latest step to its last. All processes build one and call `run`.

    teacher: the model that the recipe's `distill` names, with its weights. origins: where the weights of step 0 came
    from, for the run's folder to keep; empty unless they did.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        run: Run,
        console: Console,
        hooks: Sequence[Hook] = (),
        teacher: HybridLM | None = None,
    ):
        if recipe.train.threads:
            torch.set_num_threads(recipe.train.threads)
        torch.manual_seed(recipe.seed)
        self.recipe, self.prepared, self.folder, self.hooks = recipe, prepared, run, hooks
        with together():  # what every process refuses is said once
            learning_rate(0, recipe.train.steps, recipe.optim)
            self.micro_batch = recipe.train.sequences_per_forward(processes())
        self.checkpoints = Checkpoints(run.checkpoints, recipe.train.checkpoint, recipe.model.model_dump(mode="json"))
        self.model = HybridLM(recipe.model)
        self.origins = self._start()
        with together():
            freezing = Freezing(self.model, recipe.freeze, recipe.train.steps)
        self.engine = Engine(self.model, recipe.optim, recipe.train, recipe.train.steps, freezing)
        with together():
            self.loader = Loader(
                prepared.train,
                prepared.weights,
                context=recipe.model.context,
                batch=recipe.train.batch,
                micro_batch=self.micro_batch,
                seed=recipe.seed,
                rank=self.engine.rank,
                world_size=self.engine.world_size,
            )
        self.teacher: Teacher | None = None
        if teacher is not None and recipe.distill is not None:
            self.teacher = Teacher(teacher, recipe.distill, self.engine, recipe.train.precision == "bf16")
        self.telemetry = Telemetry(run, recipe, self.model, self.engine, console)
        if self.teacher is not None:
            self.telemetry.flops_per_token += self.teacher.model.flops_per_token(recipe.model.context)
        self.health = Health(min(recipe.train.max_skipped, recipe.train.steps))
        self.signals = Signals(self.engine.is_main)
        self.skipped = 0
        self.step = self._resume()
        if recipe.distill and self.teacher is None and self.step < recipe.train.steps:
            raise ValueError("distill: Trainer has to be given the teacher")
        self.owed = on_main(self._owed)

    def run(self) -> None:
        """Train to the last step. A step is saved before it is measured: a measurement that fails loses nothing.

        Raises NaNError when the steps are skipped one after the other, Interrupted when a signal came.
        """
        train = self.recipe.train
        if self.step < train.steps or self.owed:
            with self.telemetry, self.signals:
                self._measure(self.owed)
                while self.step < train.steps:
                    sent = self._train_step()
                    last = self.step == train.steps
                    self.health.check(self.step, last=last, kept=self._kept)
                    if last or sent or _due(self.step, train.checkpoint.every):
                        self.save()
                    if sent:
                        end(sent, self.step, self._kept())
                    self._measure(self._due())
        self.engine.close()

    def _due(self) -> set[str]:
        """The kinds of record that belong to the present step: validation sets, and hooks at all steps but the last."""
        if not self.step:
            return set()
        last = self.step >= self.recipe.train.steps  # more where a recipe now asks for fewer than were made
        valid = self.prepared.valid if last or _due(self.step, self.recipe.train.valid_every) else ()
        hooks = (hook for hook in self.hooks if not last and _due(self.step, hook.every))
        return {*(f"valid/{name}" for name in valid), *(f"eval/{hook.name}" for hook in hooks)}

    def _owed(self) -> set[str]:
        """What a run that was stopped between saving and measuring has left out."""
        return self._due() - {record["kind"] for record in self.folder.metrics() if record["step"] == self.step}

    def _measure(self, kinds: set[str]) -> None:
        self._tell_mixers()
        self.validate({name for name in self.prepared.valid if f"valid/{name}" in kinds})
        for hook in self.hooks:
            if f"eval/{hook.name}" in kinds:
                self._call(hook)

    def _kept(self) -> str:
        """What the run would go on from, in words."""
        newest = self.checkpoints.latest()
        return f"the newest checkpoint is {newest}" if newest else "there is no checkpoint"

    def _train_step(self) -> int:
        """One optimizer step; returns the signal that some rank was sent, or 0."""
        started = time.perf_counter()
        batches = self.loader.next_step()
        waited = time.perf_counter() - started
        mine = torch.tensor(sum(batch.n_targets for batch in batches), device=self.engine.device)
        n_targets = int(self.engine.all_reduce(mine))
        self.model.train()
        self.engine.begin(self.step)
        self._tell_mixers()
        totals = Totals()
        for batch in batches:
            output = self._learn(batch)
            # weighted by its tokens: the step's gradient is that of the mean over the whole global batch
            self.engine.backward(output.loss * (batch.n_targets / n_targets))
            totals.add(output.loss.detach(), output.aux_losses, output.stats, batch.n_targets, output.terms)
        lr = learning_rate(self.step, self.recipe.train.steps, self.recipe.optim)
        result = self.engine.step(lr)
        self.step += 1
        self.skipped += not result.applied
        totals, signals = totals.reduce(self.engine, self.signals.noted())
        layers = self._notify_mixers(totals.stats)
        means = totals.means()
        self.health.count(result.applied, means["loss"])
        record: dict[str, Logged] = {**means, "norm": result.grad_norm, "lr": lr, "skipped": self.skipped, **layers}
        context = self.recipe.model.context
        record["tokens"] = self.loader.sequences * context  # of all steps, whatever their batches were
        tokens = self.recipe.train.batch * context
        self.telemetry.train_step(self.step, record, tokens, time.perf_counter() - started, waited)
        return agreed(signals)

    def _learn(self, batch: Batch) -> Any:
        """The output whose loss is trained on: that of the labels, or of the teacher beside them."""
        if self.teacher is None:
            return self._forward(batch)
        return self.teacher.forward(batch.input_ids.to(self.engine.device), batch.sequences)

    def _forward(self, batch: Batch) -> Any:
        ids = batch.input_ids.to(self.engine.device)
        return self.engine.forward(input_ids=ids, labels=ids, sequences=batch.sequences, logits=False)

    def _tell_mixers(self) -> None:
        """How far training is; past the end where a recipe now asks for fewer steps than were made."""
        done = min(1.0, self.step / self.recipe.train.steps)
        for mixer in self.model.mixers():
            mixer.before_step(done)

    def _notify_mixers(self, stats: dict[int, dict[str, Tensor]]) -> dict[str, Logged]:
        """Let mixers update their buffers from the step's statistics; returns their telemetry."""
        record: dict[str, Logged] = {}
        for mixer in self.model.mixers():
            for name, value in mixer.on_step(stats.get(mixer.index, {})).items():
                record[f"layer{mixer.index}/{name}"] = value
        return record

    def validate(self, names: Collection[str]) -> None:
        """Log the loss and bits per byte of validation sets: of `valid_batches` of each, of all of it at the end."""
        limit = None if self.step >= self.recipe.train.steps else self.recipe.train.valid_batches
        for name, datasets in self.prepared.valid.items():
            if name in names:
                self.telemetry.valid(self.step, name, self._score(datasets, limit))

    @torch.no_grad()
    def _score(self, datasets: list[PackedDataset], limit: int | None) -> dict[str, float]:
        context = self.recipe.model.context
        batches = valid_batches(datasets, context=context, micro_batch=self.micro_batch, limit=limit)
        self.model.eval()
        totals = Totals()
        for batch, counts in _share(batches, self.engine.rank, self.engine.world_size):
            output = self._forward(batch)
            totals.add(output.loss, output.aux_losses, {}, batch.n_targets if counts else 0)
        loss = totals.reduce(self.engine)[0].means()["loss"]
        # a document of n tokens has n - 1 targets: all but the one that opens it
        targets = sum(d.n_tokens - d.n_documents for d in datasets)
        return {"loss": loss, "bits_per_byte": loss / math.log(2) * targets / sum(d.n_bytes for d in datasets)}

    def _call(self, hook: Hook) -> None:
        on_main(lambda: self.telemetry.measured(self.step, hook.name, hook.measure(self.model, self.step)))

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on; of a run that skips its steps, none.

        Only the last step of one is kept, beside those that were there: its weights are those of the latest good step.
        """
        on_main(self.telemetry.flush)
        if self.health.well or self.step == self.recipe.train.steps:
            extra = {"loader": self.loader.state_dict(), "skipped": self.skipped}
            self.checkpoints.save(self.engine, self.step, extra, rotate=self.health.well)

    def _start(self) -> dict[str, Any]:
        """Take the weights of step 0 from another run, if the recipe says so and this one has none."""
        init = on_main(lambda: starts_from(self.recipe, self.folder))
        if init is None:
            return {}
        run, checkpoint = on_main(lambda: source_of(init))  # one answer, as when resuming
        with together():
            check_same_vocabulary(run, self.prepared.tokenizer, "init")
            start = Start(init, self.model, checkpoint)
            start.fill(self.model)
        return {"init": start.record(run)}

    def _resume(self) -> int:
        newest = on_main(self.checkpoints.latest)  # one answer: a network's folder may look different to two nodes
        if newest is None:
            return 0
        extra = self.checkpoints.load(self.engine, newest)
        if extra["step"] == 0:  # imported weights: nothing has been trained on yet
            return 0
        with together():
            self.loader.load_state_dict(extra["loader"])
        self.skipped = extra["skipped"]
        step = int(extra["step"])
        self.telemetry.resumed(step)
        return step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _share(batches: Iterable[Batch], rank: int, world_size: int) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches, one of every world_size, and whether each counts.

    All ranks get equally many, since a forward may be collective: where the last round is short a batch is run again.
    """
    batches = iter(batches)
    while turn := list(itertools.islice(batches, world_size)):
        yield (turn[rank], True) if rank < len(turn) else (turn[0], False)
