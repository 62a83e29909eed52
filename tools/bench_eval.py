"""Multiple-choice scoring with shared prefixes, without, and by lm-eval's hf backend on the same weights, in turn.

Before anything is timed the requests themselves say what sharing can save at most: the tokens of their inputs against
the different beginnings among them (what a tree in which every token stands once would compute).
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..eval.benchmarks.catalogue import Options, build
from ..eval.benchmarks.harness import HybridHarness
from ..eval.forward.scoring import Window, split_windows
from ..lm.data.tokenizer import Tokenizer
from ..lm.model import HybridLM
from ..lm.model.loading import load_run
from ..lm.parts.errors import ConfigError
from ..lm.run import Run

ROUNDS = 2  # timed runs of each side, after one that warms up on the first few requests
WARM = 8
TOLERANCE = 1e-3  # nats between two sides' scores of one request, float32
PEER_BATCHES = (1, 8)  # lm-eval's default batch size, and one that fills the matrix products; the faster one counts

Answer = tuple[float, bool]


@dataclass
class Side:
    """One way to score: `score` answers requests; `body` and `head` are the modules whose rows are counted."""

    name: str
    score: Callable[[list[Any]], list[Answer]]
    body: nn.Module
    head: nn.Module
    forwards: int = 0
    tokens: int = 0  # with padding
    logits: int = 0  # positions
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)  # of all threads; beside other programs the steadier figure

    def run(self, requests: list[Any]) -> list[Answer]:
        """Answers, timed; counts are those of this run."""
        self.forwards = self.tokens = self.logits = 0
        hooks = [self.body.register_forward_pre_hook(self._body), self.head.register_forward_pre_hook(self._head)]
        started, cpu = time.perf_counter(), time.process_time()
        try:
            answers = self.score(requests)
        finally:
            for hook in hooks:
                hook.remove()
        self.seconds.append(time.perf_counter() - started)
        self.cpu_seconds.append(time.process_time() - cpu)
        return answers

    def _body(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.forwards += 1
        self.tokens += inputs[0].numel()

    def _head(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.logits += inputs[0].shape[:-1].numel()


def bench_eval(
    run: Path, tasks: list[str], limit: int, num_fewshot: int, threads: int, peer: bool, console: Console
) -> dict[str, Any]:
    """Time the sides on the first `limit` questions of each task, ROUNDS times in turn, check that scores agree, and
    print and return counts, seconds and ratios.

    With num_fewshot above 0 a task is measured twice: with the same solved questions before each, and with others drawn
    for each, as lm-eval does unless told otherwise. `peer`: beside lm-eval's hf backend too. Raises ConfigError when
    two sides disagree about a score.
    """
    torch.set_num_threads(threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    opened = Run(run)
    model, tokenizer, recipe = load_run(opened), opened.tokenizer(), opened.recipe
    cache = Path(recipe.data.cache).expanduser()
    seeds = (None, 0) if num_fewshot else (None,)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        sides = _our_sides(model, tokenizer, recipe.model.context)
        if peer:
            sides += _peer_sides(model, tokenizer, Path(folder) / "hf", recipe.model.context)
        for task in tasks:
            for seed in seeds:
                requests = _requests(task, cache, tokenizer, limit, num_fewshot, seed)
                shots = f"{num_fewshot} shots, {'drawn' if seed == 0 else 'fixed'}" if num_fewshot else "zero-shot"
                result = {"task": task, "shots": shots, **_measure(sides, requests, model, tokenizer, recipe)}
                results.append(result)
                console.print(_table(result, threads))
    return {"threads": threads, "limit": limit, "results": results}


def upper_bound(windows: Sequence[Window], model: HybridLM) -> dict[str, float]:
    """What computing every different beginning once would save: input tokens, positions with logits, matmul FLOPs."""
    tokens = sum(len(window.inputs) for window in windows)
    logits = sum(len(window.targets) for window in windows)
    beginnings = {hash(w.inputs[:n]) for w in windows for n in range(1, len(w.inputs) + 1)}
    scored = {hash(w.inputs[:n]) for w in windows for n in range(len(w.context), len(w.inputs) + 1)}
    mean_length = tokens // len(windows)
    head = 2 * model.lm_head.weight.numel()
    body = model.flops_per_token(mean_length) - head
    flops = (tokens * body + logits * head) / (len(beginnings) * body + len(scored) * head)
    return {"tokens": tokens / len(beginnings), "logits": logits / len(scored), "flops": flops}


def _requests(
    task: str, cache: Path, tokenizer: Tokenizer, limit: int, num_fewshot: int, seed: int | None
) -> list[Any]:
    [built] = build([task], Options(cache, tokenizer, num_fewshot, seed)).values()
    built.build_all_requests(limit=limit)
    if built.OUTPUT_TYPE != "multiple_choice":
        raise ConfigError(f"task {task!r}: asks for {built.OUTPUT_TYPE}; this measures multiple choice")
    return built.instances


def _our_sides(model: HybridLM, tokenizer: Tokenizer, max_length: int) -> list[Side]:
    sides = []
    for name, share in (("shared prefixes", True), ("not shared", False)):
        harness = HybridHarness(model, tokenizer, max_length=max_length, share_prefixes=share)
        sides.append(Side(name, harness.loglikelihood, model.embed, model.lm_head))
    return sides


def _peer_sides(model: HybridLM, tokenizer: Tokenizer, folder: Path, max_length: int) -> list[Side]:
    """lm-eval's own adapter on the model as transformers loads it: dtype and weights are ours."""
    from lm_eval.models import huggingface
    from transformers.utils import logging as transformers_logging

    from ..lm.hf.exporting import save_pretrained

    HFLM: Any = huggingface.HFLM  # a decorator of lm-eval hides its signature
    transformers_logging.disable_progress_bar()
    save_pretrained(model, folder, tokenizer=tokenizer)
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    first = HFLM(pretrained=str(folder), dtype=dtype, device="cpu", max_length=max_length)
    network: Any = first.model
    sides = []
    for batch_size in PEER_BATCHES:
        harness = HFLM(pretrained=network, tokenizer=first.tokenizer, batch_size=batch_size, max_length=max_length)
        body, head = network.get_input_embeddings(), network.get_output_embeddings()
        sides.append(Side(f"lm-eval hf, batch {batch_size}", _on_our_tokens(harness, tokenizer), body, head))
    return sides


def _on_our_tokens(harness: Any, tokenizer: Tokenizer) -> Callable[[list[Any]], list[Answer]]:
    """lm-eval's scoring of our tokens, so that where the two would tokenise apart does not blur the comparison."""
    ours = HybridHarness(None, tokenizer, max_length=harness.max_length)  # type: ignore[arg-type]

    def score(requests: list[Any]) -> list[Answer]:
        encoded = [(request.args, ours._encode(*request.args)) for request in requests]
        tokens = [
            (args, [*tokenizer.front, *e.context] or [tokenizer.prefix_id], e.continuation) for args, e in encoded
        ]
        return harness._loglikelihood_tokens(tokens, disable_tqdm=True)

    return score


def _measure(
    sides: list[Side], requests: list[Any], model: HybridLM, tokenizer: Tokenizer, recipe: Any
) -> dict[str, Any]:
    encode = HybridHarness(model, tokenizer, max_length=recipe.model.context)._encode
    pairs = [encode(*request.args) for request in requests]
    front, prefix_id = tokenizer.front, tokenizer.prefix_id
    cut = [split_windows(p.context, p.continuation, front, recipe.model.context, prefix_id) for p in pairs]
    windows = [window for parts in cut for window in parts]
    for side in sides:
        side.run(requests[:WARM])
        side.seconds.clear()
        side.cpu_seconds.clear()
    answers: dict[str, list[Answer]] = {}
    for _ in range(ROUNDS):
        for side in sides:
            answers[side.name] = side.run(requests)
    ours, *others = sides
    differences = {side.name: _difference(answers[ours.name], answers[side.name], side.name) for side in others}
    rows = []
    for side in sides:
        counts = {"forwards": side.forwards, "tokens": side.tokens, "logits": side.logits}
        times = {"seconds": min(side.seconds), "cpu_seconds": min(side.cpu_seconds)}
        rows.append({"side": side.name, **counts, **times})
    pairwise = {s.name: statistics.median(b / a for a, b in zip(ours.seconds, s.seconds, strict=True)) for s in others}
    return {
        "requests": len(requests),
        "bound": upper_bound(windows, model),
        "sides": rows,
        "speedup_over": pairwise,
        "cpu_speedup_over": {side.name: min(side.cpu_seconds) / min(ours.cpu_seconds) for side in others},
        "largest_difference": differences,
    }


def _difference(ours: list[Answer], theirs: list[Answer], name: str) -> float:
    """The largest difference of two log-likelihoods. Raises ConfigError beyond TOLERANCE or if greedy flags differ."""
    worst = max(abs(mine[0] - other[0]) for mine, other in zip(ours, theirs, strict=True))
    flags = sum(mine[1] != other[1] for mine, other in zip(ours, theirs, strict=True))
    if worst > TOLERANCE or flags:
        raise ConfigError(
            f"{name}: scores differ by up to {worst:.2g} nats, {flags} greedy flags differ; no comparison"
        )
    return worst


def _table(result: dict[str, Any], threads: int) -> Table:
    bound = result["bound"]
    title = (
        f"{result['task']}, {result['shots']}: {result['requests']} requests, {threads} thread(s). Sharing can save at "
        f"most {bound['tokens']:.2f}x tokens, {bound['logits']:.2f}x logits, {bound['flops']:.2f}x FLOPs"
    )
    table = Table(title=title)
    for column in (
        "side",
        "forwards",
        "tokens",
        "logits",
        "seconds",
        "CPU s",
        "sharing is faster",
        "in CPU s",
        "differs by",
    ):
        table.add_column(column, justify="left" if column == "side" else "right")
    for row in result["sides"]:
        name = row["side"]
        counts = [f"{row[key]:,}" for key in ("forwards", "tokens", "logits")]
        times = [f"{row[key]:.2f}" for key in ("seconds", "cpu_seconds")]
        compared = ["-"] * 3
        if name in result["speedup_over"]:
            ratios = [f"{result[key][name]:.2f}x" for key in ("speedup_over", "cpu_speedup_over")]
            compared = [*ratios, f"{result['largest_difference'][name]:.1e}"]
        table.add_row(name, *counts, *times, *compared)
    return table
