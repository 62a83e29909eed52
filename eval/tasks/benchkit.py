"""What the task files cannot say in YAML: where the questions lie, and prompts that are more than a template."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import apply_template


def load(file: str, data: str, **_metadata: Any) -> dict[str, Dataset]:
    """The questions of {data}/{file}.jsonl, each with `gold`, the right answer's index.

    `data` is the folder that `hybridlm fetch benchkit` fills.
    """
    lines = (Path(data) / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    golds = [question.get("labels", ["no", "yes"]).index(question["answer"]) for question in questions]
    return {"test": Dataset.from_list([{**q, "gold": gold} for q, gold in zip(questions, golds, strict=True)])}


def winogrande_gold(doc: dict[str, Any]) -> int:
    """The right option's index; a number in place of a text tells lm-eval that the options change the context."""
    return doc["gold"]


def winogrande_contexts(doc: dict[str, Any]) -> list[str]:
    """The sentence up to the blank, filled with each option."""
    before, _, _ = doc["sentence"].partition("_")
    return [before + option for option in doc["choices"]]


def winogrande_ending(doc: dict[str, Any]) -> str:
    """The sentence behind the blank: what is scored, the same after every option (Trinh and Le 2018)."""
    _, _, after = doc["sentence"].partition("_")
    return after.strip()


def truthfulqa_prompt(doc: dict[str, Any]) -> str:
    """lm-eval's own prompt, whose six solved questions are part of the benchmark."""
    return apply_template(_truthfulqa_template(), doc)


@cache
def _truthfulqa_template() -> str:
    stock = Path(lm_eval.tasks.__file__).parent / "truthfulqa" / "truthfulqa_mc1.yaml"
    return load_yaml(stock, resolve_func=False)["doc_to_text"]
