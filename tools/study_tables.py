"""Tables of a study's results, on a terminal and in Markdown: mixer by ratio, and every variant with its costs."""

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from rich.console import Console

from ..eval.console import binary, markdown_table, plain_table, si

Row = dict[str, Any]

NOTES = (
    "train s: the sum of the steps, without start and validation. non-emb.: parameters without embedding and head. "
    "FLOPs/token: forward. state: bytes of a sequence after as many tokens as the context has, and after 2^20.\n"
)

COSTS = ("variant", "tokens/s", "train s", "parameters", "non-emb.", "FLOPs/token", "state", "at 1M tokens")


def show(rows: list[Row], console: Console) -> None:
    """Print bits per byte by mixer and ratio for every validation set, then what each variant costs."""
    for name in rows[0]["valid"]:
        console.print(plain_table(f"bits per byte on {name}", *by_mixer_and_ratio(rows, name)))
    console.print(plain_table("cost", COSTS, [costs(row) for row in rows]))


def markdown(heading: dict[str, str], rows: list[Row]) -> str:
    """The same for a page, under the command and the machine."""
    parts = [f"`{heading['command']}`, {si(rows[0]['tokens'])} tokens per run, on {heading['hardware']}.\n"]
    for name in rows[0]["valid"]:
        parts.append(f"Bits per byte on `{name}`:\n\n{markdown_table(*by_mixer_and_ratio(rows, name))}")
    detailed = [(*costs(row), *scores(row)) for row in rows]
    names = [f"{unit}, {name}" for name in rows[0]["valid"] for unit in ("nats/token", "bits/byte")]
    parts += [f"Costs and scores:\n\n{markdown_table((*COSTS, *names), detailed)}", NOTES]
    return "\n".join(parts)


def by_mixer_and_ratio(rows: list[Row], valid: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the grid; a variant outside it has one value, in a column of its own.

    Of several seeds a cell has the mean, the standard deviation between them and their number.
    """
    ratios = list(dict.fromkeys(row["ratio"] for row in rows if row["ratio"]))
    mixers = list(dict.fromkeys(row["mixer"] for row in rows if row["mixer"]))
    cells = _over_seeds(((row["mixer"], row["ratio"]), row["valid"][valid]) for row in rows if row["mixer"])
    others = _over_seeds((row["of"], row["valid"][valid]) for row in rows if not row["mixer"])
    table = [[mixer, *(cells.get((mixer, ratio), "") for ratio in ratios), ""] for mixer in mixers]
    table += [[name, *[""] * len(ratios), value] for name, value in others.items()]
    return ["mixer", *ratios, "alone"], table


def _over_seeds(scores: Iterable[tuple[Any, dict[str, float]]]) -> dict[Any, str]:
    found: dict[Any, list[float]] = {}
    for key, score in scores:
        found.setdefault(key, []).append(score["bits_per_byte"])
    return {
        key: f"{mean(bits):.3f}" + (f" ± {stdev(bits):.3f} ({len(bits)} seeds)" if len(bits) > 1 else "")
        for key, bits in found.items()
    }


def costs(row: Row) -> tuple[str, ...]:
    """A variant's line under `COSTS`."""
    return (
        row["variant"],
        f"{row['tokens_per_second']:,.0f}",
        f"{row['train_seconds']:.0f}",
        si(row["parameters"]),
        si(row["non_embedding"]),
        si(row["flops_per_token"]),
        binary(row["state_at_context"]),
        binary(row["state_at_1m"]),
    )


def scores(row: Row) -> tuple[str, ...]:
    """Nats per token and bits per byte on every validation set."""
    return tuple(f"{score[key]:.3f}" for score in row["valid"].values() for key in ("loss", "bits_per_byte"))
