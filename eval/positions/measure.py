"""Perplexity by position in a long text: does context still help beyond the length that a model was trained at?"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self, get_args

import torch
from rich.table import Table
from torch import Tensor

from ...lm.model.cache import Cache
from ...lm.parts.errors import ConfigError, DataError
from ...lm.parts.strict import nearest
from ...lm.recipe.eval import Mode
from ..forward.long_context import CHUNK, check_length, length_limit, nan_traced, run_chunks, target_scores
from ..forward.scoring import inference
from ..saved import Saved

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.model import HybridLM


@dataclass(frozen=True)
class Bucket:
    """Tokens at positions start..end - 1 of their stretch: mean of -log p in nats, its standard error, their number."""

    start: int
    end: int
    nats: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One text in one mode. nats: sum of -log p over all tokens. beyond: tokens predicted from more of them than the
    model's positions were trained for."""

    text: str
    mode: Mode
    window: int
    bytes: int
    tokens: int
    nats: float
    bits_per_byte: float
    beyond: int
    buckets: list[Bucket]


@dataclass(frozen=True)
class Positions(Saved):
    """The curves of one model."""

    kind: ClassVar[str] = "positions"

    curves: list[Curve]
    checkpoint: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        content = cls.read(path)
        curves = [Curve(**{**c, "buckets": [Bucket(**b) for b in c["buckets"]]}) for c in content["curves"]]
        return cls(curves, content["checkpoint"])

    def values(self) -> dict[str, float]:
        """The numbers to log: bits per byte of each curve, nats per token of its first and last bucket."""
        values = {}
        for curve in self.curves:
            name = f"{curve.text}/{curve.mode}"
            values[f"{name}/bits_per_byte"] = curve.bits_per_byte
            values[f"{name}/first_nats"], values[f"{name}/last_nats"] = curve.buckets[0].nats, curve.buckets[-1].nats
        return values

    def table(self) -> Table:
        """Nats per token by position, a column for each curve."""
        table = Table(title="nats per token by position (± standard error)", title_justify="left")
        table.add_column("positions")
        for curve in self.curves:
            table.add_column(f"{curve.text}\n{curve.mode} {curve.window}", justify="right")
        found = [{(b.start, b.end): f"{b.nats:.3f}" + _plus_minus(b) for b in curve.buckets} for curve in self.curves]
        for span in sorted({span for cells in found for span in cells}):
            table.add_row(f"{span[0]}-{span[1] - 1}", *(cells.get(span, "") for cells in found))
        table.add_section()
        table.add_row("bits per byte", *(f"{curve.bits_per_byte:.4f}" for curve in self.curves))
        if any(curve.beyond for curve in self.curves):
            table.add_row("tokens beyond the model's length", *(f"{curve.beyond}" for curve in self.curves))
        return table


def _plus_minus(bucket: Bucket) -> str:
    return "" if bucket.stderr is None else f" ± {bucket.stderr:.3f}"


def joined(measured: Iterable[Positions]) -> Positions:
    """All curves in one; they are of the same checkpoint."""
    parts = list(measured)
    return Positions([curve for part in parts for curve in part.curves], parts[0].checkpoint)


class Span(NamedTuple):
    """One window: tokens first..stop - 1 are read, BOS being token 0, and those after start..stop - 1 are scored."""

    first: int
    start: int
    stop: int


def spans(n: int, mode: Mode, window: int, stride: int) -> list[Span]:
    """The windows in which n tokens after BOS are scored, every one of them once.

    whole: a single one. carry: side by side. reset: side by side but for one token, which every window after the first
    sees before its first target; the last one sees as many as fit. sliding: `stride` new tokens at a time.
    """
    if mode == "whole":
        return [Span(0, 0, n)]
    if mode == "carry":
        return [Span(start, start, min(start + window, n)) for start in range(0, n, window)]
    new = window - 1 if mode == "reset" else stride
    first = [Span(0, 0, min(window, n))]
    starts = range(window, n, new)
    return first + [Span(max(0, min(s + new, n) - window), s, min(s + new, n)) for s in starts]


def modes_of(model: "HybridLM", max_tokens: int) -> list[Mode]:
    """The modes that this model has for so many tokens."""
    fits = model.config.positions != "learned" or max_tokens <= model.config.context
    whole: list[Mode] = ["whole"] if fits else []
    return [*whole, "sliding", "reset", *(["carry"] if can_carry(model) else [])]


def can_carry(model: "HybridLM") -> bool:
    """Whether any layer has a state of fixed size, which can go on where attention's window ends."""
    return any(mixer.constant_state for mixer in model.mixers())


@dataclass(frozen=True)
class Stretches:
    """A text's first tokens in documents of their own. rows: token ids without BOS, all but the last equally many."""

    name: str
    rows: list[list[int]]
    bytes: int
    bos_id: int

    @classmethod
    def cut(cls, tokenizer: "Tokenizer", text: str, *, max_tokens: int, blocks: int, name: str = "text") -> Self:
        """The first `blocks` of `max_tokens` tokens each; fewer or shorter ones where the text has fewer tokens.

        Raises ConfigError for numbers below 1, DataError for an empty text.
        """
        for what, value in (("max_tokens", max_tokens), ("blocks", blocks)):
            if value < 1:
                raise ConfigError(f"{what}: {value}; use 1 or more")
        tokens = tokenizer.encode(text)[: blocks * max_tokens]
        if not tokens:
            raise DataError(f"text {name!r}: is empty; give a longer one")
        rows = [tokens[start : start + max_tokens] for start in range(0, len(tokens), max_tokens)]
        return cls(name, rows, sum(len(tokenizer.decode(row).encode()) for row in rows), tokenizer.bos_id)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return len(self.rows[0])


@dataclass(frozen=True)
class Reading:
    """How tokens are predicted one from another.

    mode:
    `whole`: one pass; recurrent states, keys and values go from chunk to chunk.
    `sliding`: windows of `window` tokens, BOS included, each with `stride` (default: half of it) new ones, all states
        anew; a token is predicted from at least window - stride before it.
    `reset`: windows side by side, all states anew: what lm-eval does with long texts.
    `carry`: windows side by side; recurrent states go on, attention sees its window alone.
    buckets: positions averaged together. beyond: `error` or `run`, for inputs longer than rotary attention was trained
    for.
    """

    mode: Mode
    window: int
    buckets: int
    stride: int | None = None
    beyond: str = "error"

    def check(self, model: "HybridLM", stretches: Stretches) -> None:
        """Raises ConfigError for what cannot be, or not with this model, whose weights are not looked at."""
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode {self.mode!r}: unknown; {nearest(self.mode, get_args(Mode))}")
        if self.window < 2:
            raise ConfigError(f"window: {self.window} leaves no token beside BOS; use 2 or more")
        if self.stride is not None and not 0 < self.stride < self.window:
            raise ConfigError(
                f"stride: {self.stride} new tokens in a window of {self.window}; use 1 to {self.window - 1}"
            )
        if self.buckets < 1:
            raise ConfigError(f"buckets: {self.buckets}; use 1 or more")
        if self.mode == "carry" and not can_carry(model):
            raise ConfigError(
                "mode 'carry': the model has attention only, no state to carry; use reset, sliding or whole"
            )
        if self.mode == "whole":
            check_length(model.config, stretches.longest, self.beyond, "max_tokens")
        else:
            check_length(model.config, min(self.window, stretches.longest), self.beyond, "window")

    def plan(self, n: int) -> list[Span]:
        """The windows of a row of n tokens."""
        return spans(n, self.mode, self.window, self.stride or max(1, self.window // 2))


def measure_positions(
    model: "HybridLM",
    stretches: Stretches,
    reading: Reading,
    *,
    batch_tokens: int = 8192,
    checkpoint: str = "",
) -> Positions:
    """-log p of every token of a text's stretches, by position in the stretch.

    Each stretch is a document of its own, behind BOS. batch_tokens: tokens of a forward. Memory: activations of
    `batch_tokens` tokens, a slice of their logits, and the decoding state. bits_per_byte counts the bytes of the
    decoded tokens. Raises ConfigError for a reading that cannot be.
    """
    reading.check(model, stretches)
    nats, places, n_beyond = [], [], 0
    limit = length_limit(model.config) or math.inf
    with inference(model):
        for rows in _batches(stretches.rows, max(1, batch_tokens // CHUNK)):
            plan = reading.plan(len(rows[0]))
            ids = torch.tensor([[stretches.bos_id, *row] for row in rows], device=model.device)
            with nan_traced(model, ids):
                nats.append(_score(model, ids, plan, reading.mode).flatten())
            places.append(torch.arange(len(rows[0])).repeat(len(rows)))
            n_beyond += len(rows) * sum(max(0, min(s.stop - s.start, s.stop - s.first - limit)) for s in plan)
    cost, place = torch.cat(nats), torch.cat(places)
    total = float(cost.sum())
    curve = Curve(
        text=stretches.name,
        mode=reading.mode,
        window=stretches.longest if reading.mode == "whole" else reading.window,
        bytes=stretches.bytes,
        tokens=len(cost),
        nats=total,
        bits_per_byte=total / math.log(2) / max(stretches.bytes, 1),
        beyond=int(n_beyond),
        buckets=_buckets(cost, place, reading.buckets, stretches.longest),
    )
    return Positions([curve], checkpoint)


def _batches(rows: list[list[int]], size: int) -> Iterable[list[list[int]]]:
    """Rows of equal length side by side; only the last row can be shorter."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
    if len(whole) < len(rows):
        yield rows[-1:]


def _score(model: "HybridLM", ids: Tensor, plan: list[Span], mode: Mode) -> Tensor:
    """-log p of ids[:, 1:] [B, n], float64 on the CPU; ids [B, n + 1] start with BOS."""
    nats = torch.zeros(len(ids), ids.shape[1] - 1, dtype=torch.float64)
    cache = model.new_cache(len(ids))
    for span in plan:
        read = ids[:, span.first : span.stop].clone()
        if span.first:
            cache = _carried(model, cache) if mode == "carry" else model.new_cache(len(ids))
            if mode != "carry":
                read[:, 0] = ids[:, 0]  # BOS, which every document of the training began with
        for offset, hidden in run_chunks(model, read, cache):
            skip = max(0, span.start - span.first - offset)  # read before, scored before
            start = span.first + offset + skip
            if skip < hidden.shape[1]:
                target = ids[:, start + 1 : start + 1 + hidden.shape[1] - skip]
                cost, _ = target_scores(model, hidden[:, skip:], target)
                nats[:, start : start + cost.shape[1]] = cost.double().cpu()
    return nats


def _carried(model: "HybridLM", cache: Cache) -> Cache:
    """The states of fixed size as they are; empty ones, and position 0, for attention."""
    n, dtype = len(cache.lengths), model.embed.weight.dtype
    layers = [
        layer if mixer.constant_state else mixer.new_state(n, dtype, model.device)
        for layer, mixer in zip(cache.layers, model.mixers(), strict=True)
    ]
    return Cache(layers, n)


def _buckets(cost: Tensor, place: Tensor, width: int, longest: int) -> list[Bucket]:
    found = []
    for start in range(0, longest, width):
        chosen = cost[(place >= start) & (place < start + width)]
        stderr = float(chosen.std()) / math.sqrt(len(chosen)) if len(chosen) > 1 else None
        found.append(Bucket(start, min(start + width, longest), float(chosen.mean()), stderr, len(chosen)))
    return found


def plot_positions(positions: Positions, path: str | Path) -> Path:
    """Nats per token against position, a line with its standard error for each curve; a .png or .svg."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for curve in positions.curves:
        middle = [(bucket.start + bucket.end) / 2 for bucket in curve.buckets]
        error = [bucket.stderr or 0.0 for bucket in curve.buckets]
        label = f"{curve.text}, {curve.mode} {curve.window}"
        axes.errorbar(middle, [bucket.nats for bucket in curve.buckets], error, label=label, marker=".", capsize=2)
    axes.set(xlabel="position", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
