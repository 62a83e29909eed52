"""One question in tokens, and files of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...lm.data.files import atomic


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question. tokens [n]: what the tokenizer puts in front (BOS, mostly), the text, the question, the first words
    of the answer; n and `max_new_tokens` are `length` together, or a little less where the text is a list of words.
    depth: of the needle that holds the answer, None where several do. answers: in lower case. answer: their tokens, in
    order, as they follow the prompt.
    """

    task: str
    length: int
    depth: float | None
    tokens: np.ndarray
    answers: tuple[str, ...]
    answer: tuple[int, ...]
    max_new_tokens: int


def write(file: Path, prompts: Iterable[Prompt]) -> None:
    """Keep prompts; missing folders are made."""
    prompts = list(prompts)
    facts = [{name: value for name, value in vars(prompt).items() if name != "tokens"} for prompt in prompts]
    tokens = [prompt.tokens for prompt in prompts]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as out:
        ends = np.cumsum([len(row) for row in tokens])
        np.savez_compressed(out, tokens=np.concatenate(tokens), ends=ends, facts=json.dumps(facts))


def read(file: Path) -> list[Prompt]:
    """What `write` kept."""
    with np.load(file, allow_pickle=False) as content:
        rows = np.split(content["tokens"], content["ends"][:-1])
        facts = json.loads(str(content["facts"]))
    return [
        Prompt(**{**fact, "answers": tuple(fact["answers"]), "answer": tuple(fact["answer"]), "tokens": row})
        for fact, row in zip(facts, rows, strict=True)
    ]
