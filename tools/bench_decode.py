"""Decoding beside transformers: single tokens of both in turn, behind the same context, prefill left out."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..eval.console import plain_table
from ..lm.hf.exporting import save_pretrained
from ..lm.model import HybridLM
from ..lm.recipe.recipe import Recipe

ROUND = 4  # tokens of one side before it is the other's turn: more would see the machine's speed drift
STREAM = 1 << 28  # bytes read to measure the memory's bandwidth, far more than any cache holds


@dataclass
class DecodeCase:
    """Seconds per step of both sides, one entry a round, for a batch behind a context."""

    batch: int
    context: int
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over rounds of their time by ours: above 1 we are faster."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))


def bench_decode(
    subject: str, batches: list[int], contexts: list[int], rounds: int, threads: int, console: Console
) -> list[DecodeCase]:
    """Time greedy decoding of `subject`, a run folder or a recipe (random weights), in float32.

    transformers' model has the same weights: it is loaded from an export. Prints milliseconds per step in the median,
    the ratio, and the share of a step that reading all weights once would take at the memory's measured bandwidth.
    """
    torch.set_num_threads(threads)
    model = _model(subject)
    with tempfile.TemporaryDirectory() as folder:
        peer = _transformers(model, Path(folder) / "export")
    rows = [DecodeCase(batch, context) for context in contexts for batch in batches]
    for row in rows:
        _time(row, model, peer, rounds)
    floor = sum(p.nbytes for p in model.parameters()) / bandwidth()
    _print(rows, floor, f"{subject}, float32, {threads} thread(s), {rounds} x {ROUND} tokens", console)
    return rows


def bandwidth() -> float:
    """Bytes per second at which PyTorch reads memory on its present threads, the best of several sums."""
    x = torch.ones(STREAM // 4)
    best = min(_seconds(x.sum) for _ in range(5))
    return STREAM / best


def _model(subject: str) -> HybridLM:
    if (Path(subject) / "recipe.yaml").is_file():
        return HybridLM.from_run(subject)
    torch.manual_seed(0)
    return HybridLM(Recipe.load(subject).model).eval()


def _transformers(model: HybridLM, folder: Path) -> Any:
    # where flash-linear-attention is installed transformers binds its Triton kernels, which have no CPU form
    sys.modules["fla"] = None  # type: ignore[assignment]
    from transformers import AutoModelForCausalLM

    save_pretrained(model, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _time(row: DecodeCase, model: HybridLM, peer: Any, rounds: int) -> None:
    ids = torch.randint(model.config.vocab_size, (1, row.context), generator=torch.Generator().manual_seed(0))
    ours, theirs = _ours(model, ids, row.batch), _theirs(peer, ids, row.batch)
    for i in range(rounds + 1):
        a, b = _seconds(ours) / ROUND, _seconds(theirs) / ROUND
        if i:  # the first round allocates
            row.ours.append(a)
            row.theirs.append(b)


def _ours(model: HybridLM, ids: Tensor, batch: int) -> Callable[[], None]:
    """Prefills one row and repeats it; the function decodes ROUND tokens more."""
    prefill = model(ids, cache=True, logits=False)
    assert prefill.cache is not None
    cache = prefill.cache.select([0] * batch)
    token = ids[:, -1:].expand(batch, 1)

    def steps() -> None:
        nonlocal token
        for _ in range(ROUND):
            logits = model(token, cache=cache).logits
            assert logits is not None
            token = logits[:, -1:].argmax(-1)

    return steps


def _theirs(peer: Any, ids: Tensor, batch: int) -> Callable[[], None]:
    cache = peer(ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.reorder_cache(torch.zeros(batch, dtype=torch.long))
    token = ids[:, -1:].expand(batch, 1)

    def steps() -> None:
        nonlocal token
        for _ in range(ROUND):
            token = peer(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    return steps


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _print(rows: list[DecodeCase], floor: float, title: str, console: Console) -> None:
    header = ("context", "batch", "hybridlm, ms", "transformers, ms", "ratio", "weights at full bandwidth")
    cells = [
        (
            str(row.context),
            str(row.batch),
            f"{1e3 * statistics.median(row.ours):.1f}",
            f"{1e3 * statistics.median(row.theirs):.1f}",
            f"{row.ratio:.2f}",
            f"{100 * floor / statistics.median(row.ours):.0f} %",
        )
        for row in rows
    ]
    console.print(plain_table(title, header, cells))
