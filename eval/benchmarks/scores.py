"""Benchmark results: a table to read and a JSON file to keep, each number with its error, chance and provenance."""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

from filelock import FileLock
from rich.table import Table

from ...lm.data.files import to_json, write_atomically
from ..saved import Saved, set_aside
from ..tasks.gold import bits_per_byte
from .conditions import Conditions


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    stderr: standard error of the mean over documents; None for one document or where lm-eval has none. n: documents.
    chance: the expected value when every answer is as likely; None where that has no meaning. task_hash: of the task's
    configuration, its questions and the first prompts; scores with different hashes answer different questions.
    truncated, apart: requests whose context was cut, and whose continuation was tokenised by itself. ties: documents
    whose best answers score exactly the same, of which the first counts as chosen. conditions: None of a score kept by
    a version that did not write them down.
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
    conditions: Conditions | None = None

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Of a file's plain values."""
        conditions, value = content.get("conditions"), content["value"]
        read = {"conditions": conditions and Conditions(**conditions), "value": math.nan if value is None else value}
        return cls(**{**content, **read})

    def replaces(self, other: "Score") -> bool:
        """Whether this is the same question put in the same way: other conditions make it another score."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("task", "metric", "task_hash", "n"))
        return same and other.conditions in (None, self.conditions)


@dataclass(frozen=True)
class Scores(Saved):
    """All scores of one evaluation, and what they were taken with."""

    kind: ClassVar[str] = "tasks"

    scores: list[Score]
    checkpoint: str
    max_length: int
    limit: int | None
    fingerprint: str = ""
    lm_eval: str = version("lm_eval")

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; missing folders are made.

        What the file has of the same model (its fingerprint) stays, but for scores of the same questions under the same
        conditions. max_length and limit in the file are those of the latest evaluation. Two evaluations that end at
        once are both kept.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with FileLock(lock):
            kept = self.kept(path) if path.is_file() else None
            if path.is_file() and kept is None:
                set_aside(path)
            scores = self.scores
            if kept and kept.fingerprint == self.fingerprint:
                scores = [*(old for old in kept.scores if not any(new.replaces(old) for new in self.scores)), *scores]
            taken = {key: value for key, value in asdict(self).items() if key != "scores"}
            content = {"kind": self.kind, **taken, "scores": [asdict(score) for score in scores]}
            write_atomically(path, to_json(content).encode())
            lock.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        content = cls.read(path)
        return cls(**{**content, "scores": [Score.parse(score) for score in content["scores"]]})

    def values(self) -> dict[str, float]:
        """The numbers to log."""
        return {f"{score.task}/{score.metric}": score.value for score in self.scores}

    def table(self) -> Table:
        """One row per metric; the last column says what a reader should know before comparing."""
        how = dict.fromkeys(str(score.conditions) for score in self.scores if score.conditions)
        table = Table(title="; ".join(how), title_justify="left", caption_justify="left")
        table.add_column("task", no_wrap=True)
        table.add_column("metric", no_wrap=True)
        for column in ("value", "± stderr", "chance", "n"):
            table.add_column(column, justify="right")
        table.add_column("note")
        for score in self.scores:
            numbers = (score.value, score.stderr, score.chance)
            cells = ["-" if n is None else f"{n:.4f}" if n < 1e4 else f"{n:.2e}" for n in numbers]
            table.add_row(score.task, score.metric, *cells, str(score.n), _note(score))
        told = (
            f"{word}: {meaning}" for field, (word, meaning) in NOTES.items() if any(map(attrgetter(field), self.scores))
        )
        table.caption = "; ".join(told)
        return table


NOTES = {
    "truncated": ("cut", "requests whose context did not fit"),
    "apart": ("apart", "answers tokenised by themselves"),
    "ties": ("ties", "questions with two best answers, of which the first counts as chosen"),
}


def _note(score: Score) -> str:
    return ", ".join(f"{count} {word}" for field, (word, _) in NOTES.items() if (count := getattr(score, field)))


def group_mean(group: str, scores: list[Score]) -> list[Score]:
    """The mean over all documents of a group's tasks, for each metric, as one score under the group's name."""
    means = []
    for metric in dict.fromkeys(score.metric for score in scores):
        parts = [score for score in scores if score.metric == metric]
        n = sum(score.n for score in parts)
        variance = sum((score.n * score.stderr) ** 2 for score in parts if score.stderr is not None) / n**2
        chances = [score.chance for score in parts if score.chance is not None]
        means.append(
            Score(
                task=group,
                metric=metric,
                value=sum(score.n * score.value for score in parts) / n,
                stderr=math.sqrt(variance) if all(score.stderr is not None for score in parts) else None,
                n=n,
                chance=statistics.fmean(chances) if chances else None,
                task_hash=hashlib.sha256("".join(score.task_hash for score in parts).encode()).hexdigest()[:12],
                truncated=sum(score.truncated for score in parts),
                apart=sum(score.apart for score in parts),
                ties=sum(score.ties for score in parts),
                conditions=_of_all(score.conditions for score in parts),
            )
        )
    return means


def _of_all(conditions: Iterable[Conditions | None]) -> Conditions | None:
    """Those of the mean: limited where one of its tasks is."""
    found = list(dict.fromkeys(conditions))
    return next((one for one in found if one and one.limit is not None), found[0])


def collect(
    results: dict[str, Any],
    tasks: dict[str, Any],
    contents: dict[str, str],
    *,
    truncated: Mapping[str, int],
    apart: Mapping[str, int],
    conditions: Conditions,
) -> list[Score]:
    """What lm-eval found.

    results: of `lm_eval.evaluate` with samples. tasks: lm-eval's task objects. contents: a hash of each task's
    configuration and questions. truncated, apart: requests of each task, see Score. conditions: those asked for; a task
    that has no more documents than the limit has none.
    """
    scores = []
    for name, metrics in results["results"].items():
        samples = results["samples"][name]
        documents = results["n-samples"][name]
        whole = documents["effective"] == documents["original"]
        asked = task_hash(contents[name], samples[0]["arguments"])
        ties = sum(_tied(sample["filtered_resps"]) for sample in samples) if _chooses(tasks[name]) else 0
        for metric, value, error, chance in _measured(tasks[name], metrics, samples):
            scores.append(
                Score(
                    task=name,
                    metric=metric,
                    value=value,
                    stderr=error,
                    n=len(samples),
                    chance=chance,
                    task_hash=asked,
                    truncated=truncated[name],
                    apart=apart[name],
                    ties=ties,
                    conditions=replace(conditions, limit=None) if whole else conditions,
                )
            )
    return scores


def _chooses(task: Any) -> bool:
    return task.OUTPUT_TYPE == "multiple_choice"


def _measured(
    task: Any, metrics: dict[str, Any], samples: list[dict[str, Any]]
) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Name, value, standard error and chance of each metric of one task."""
    chance = statistics.fmean(1 / len(sample["arguments"]) for sample in samples) if _chooses(task) else None
    for key, value in metrics.items():
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr"):
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            error = float(stderr) if isinstance(stderr, float) else None
            if metric == "perplexity" and len(samples) > 1:  # of exp, to first order; lm-eval would draw samples
                error = float(value) * _stderr([sample["perplexity"] for sample in samples])
            yield metric, float(value), error, chance if metric.startswith("acc") else None
    if chance is not None:
        bits = [gold_bits_per_byte(task, sample) for sample in samples]
        yield "gold_bpb", statistics.fmean(bits), _stderr(bits) if len(bits) > 1 else None, None


def _stderr(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def gold_bits_per_byte(task: Any, sample: dict[str, Any]) -> float:
    """-log2 p(right answer | question) / its UTF-8 bytes: moves long before a small model's accuracy leaves chance."""
    doc = sample["doc"]
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):  # some tasks name the right answer, some number it
        gold = task.doc_to_choice(doc).index(gold)
    _context, answer = sample["arguments"][gold]
    log_likelihood, _greedy = sample["filtered_resps"][gold]
    return bits_per_byte(log_likelihood, answer)


def _tied(answers: list[tuple[float, bool]]) -> bool:
    best, second = sorted((log_likelihood for log_likelihood, _ in answers), reverse=True)[:2]
    return best == second


def task_hash(content: str, first_requests: list[Any]) -> str:
    """12 hex digits of SHA-256 over the hash of what a task asks and the first document's requests as they are put."""
    digest = hashlib.sha256(content.encode())
    digest.update(json.dumps(first_requests, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()[:12]
