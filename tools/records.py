"""What a run's records say, for tables and curves."""

from ..lm.run import Run


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
