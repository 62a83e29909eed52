"""What a run's records say, for tables and curves."""

from collections.abc import Sequence
from typing import Any

from ..lm.run import Run

Record = dict[str, Any]


def tokens_at(steps: Sequence[Record], step: int) -> int:
    """Tokens seen by a step, from the records of training; of the nearest step before it where it has none itself."""
    return max((record["tokens"] for record in steps if record["step"] <= step), default=0)


def rate(steps: Sequence[Record]) -> float:
    """Tokens per second over the last 20 of the records of training, whatever their batches were."""
    first, *later = steps[-20:]
    if not later:
        return first["tokens"] / first["step"] / first["seconds"]
    return (later[-1]["tokens"] - first["tokens"]) / sum(record["seconds"] for record in later)


def valid_scores(run: Run) -> dict[str, dict[str, float]]:
    """The last logged score of every validation set: {set: {loss, bits_per_byte, step}}."""
    scores = {}
    for record in run.metrics():
        kind, _, name = record["kind"].partition("/")
        if kind == "valid":
            keys = ("loss", "bits_per_byte")
            scores[name] = {key: record[f"{name}/{key}"] for key in keys} | {"step": record["step"]}
    return scores


def smooth(values: list[float], factor: float = 0.95) -> list[float]:
    """Exponential moving average with the start-up bias removed."""
    average, weight, out = 0.0, 0.0, []
    for value in values:
        average = factor * average + (1 - factor) * value
        weight = factor * weight + (1 - factor)
        out.append(average / weight)
    return out
