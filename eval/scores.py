"""Benchmark results: a table to read and a JSON file to keep, each number with its error, chance and provenance."""

import hashlib
import json
import math
import statistics
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from rich.table import Table

from ..lm.data.files import write_atomically


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    stderr: standard error of the mean over documents; None for one document or where lm-eval has none. n: documents.
    chance: the expected value when every answer is as likely; None where that has no meaning. task_hash: of the task's
    YAML, its data and the first document's prompts; scores with different hashes answer different questions.
    truncated, apart: requests whose context was cut, and whose continuation was tokenised by itself. ties: documents
    whose best answers score exactly the same, of which the first counts as chosen.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    chance: float | None
    task_hash: str
    truncated: int
    apart: int
    ties: int


@dataclass(frozen=True)
class Scores:
    """All scores of one evaluation, and what they were taken with."""

    scores: list[Score]
    checkpoint: str
    max_length: int
    limit: int | None
    lm_eval: str = version("lm_eval")

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; missing folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**{**content, "scores": [Score(**score) for score in content["scores"]]})

    def table(self) -> Table:
        """One row per metric; the last column says what a reader should know before comparing."""
        table = Table()
        table.add_column("task")
        table.add_column("metric")
        for column in ("value", "± stderr", "chance", "n"):
            table.add_column(column, justify="right")
        table.add_column("note")
        for score in self.scores:
            numbers = (score.value, score.stderr, score.chance)
            cells = ["-" if number is None else f"{number:.4f}" for number in numbers]
            table.add_row(score.task, score.metric, *cells, str(score.n), _note(score))
        return table


def _note(score: Score) -> str:
    counts = {"contexts cut": score.truncated, "answers tokenised apart": score.apart, "ties": score.ties}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def collect(results: dict[str, Any], tasks: dict[str, Any], sources: dict[str, list[Path]]) -> list[dict[str, Any]]:
    """What lm-eval found, as the fields of a `Score` that do not depend on the model's inputs.

    results: of `lm_eval.evaluate` with samples. tasks: lm-eval's task objects. sources: each task's YAMLs and data.
    """
    rows = []
    for name, metrics in results["results"].items():
        samples = results["samples"][name]
        common = {
            "task": name,
            "n": len(samples),
            "task_hash": task_hash(sources[name], samples[0]["arguments"]),
            "ties": 0,
        }
        chance = None
        if tasks[name].OUTPUT_TYPE == "multiple_choice":
            chance = statistics.fmean(1 / len(sample["arguments"]) for sample in samples)
            common["ties"] = sum(_tied(sample["filtered_resps"]) for sample in samples)
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if chosen and not metric.endswith("_stderr"):
                stderr = metrics.get(f"{metric}_stderr,{chosen}")
                error = float(stderr) if isinstance(stderr, float) else None
                rows.append({**common, "metric": metric, "value": float(value), "stderr": error, "chance": chance})
        if chance is not None:
            bits = [gold_bits_per_byte(tasks[name], sample) for sample in samples]
            error = statistics.stdev(bits) / math.sqrt(len(bits)) if len(bits) > 1 else None
            rows.append(
                {**common, "metric": "gold_bpb", "value": statistics.fmean(bits), "stderr": error, "chance": None}
            )
    return rows


def gold_bits_per_byte(task: Any, sample: dict[str, Any]) -> float:
    """-log2 p(right answer | question) / its UTF-8 bytes: moves long before a small model's accuracy leaves chance."""
    doc = sample["doc"]
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    _context, answer = sample["arguments"][gold]
    log_likelihood, _greedy = sample["filtered_resps"][gold]
    return -log_likelihood / math.log(2) / len(answer.encode())


def _tied(answers: list[tuple[float, bool]]) -> bool:
    best, second = sorted((log_likelihood for log_likelihood, _ in answers), reverse=True)[:2]
    return best == second


def task_hash(sources: list[Path], first_requests: list[Any]) -> str:
    """12 hex digits of SHA-256 over the files and the first document's requests."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps(first_requests, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()[:12]
