"""Contexts of a given number of tokens around an answer: cut where a passage is longer, filled up where shorter."""

import re
from collections.abc import Callable, Iterator, Sequence

from .passages import Question
from .task import contains


def window(text: str, place: tuple[int, int], budget: int, count: Callable[[str], int]) -> str:
    """The words around text[place] that fit `budget` tokens, half of them in front; the other side gets what one lacks.

    count: tokens of a text. Words are counted one by one first; a text that then has more tokens loses outer words.
    """
    words = [match.span() for match in re.finditer(r"\s*\S+", text)]
    first = next(i for i, (_, end) in enumerate(words) if end > place[0])
    last = next(i for i, (_, end) in enumerate(words) if end >= place[1])
    room = budget - sum(count(text[start:end]) for start, end in words[first : last + 1])
    before = [count(text[start:end]) for start, end in reversed(words[:first])]
    after = [count(text[start:end]) for start, end in words[last + 1 :]]
    left = _fit(before, max(room // 2, room - sum(after)))
    right = _fit(after, room - sum(before[:left]))
    while True:
        cut = text[words[first - left][0] : words[last + right][1]].strip()
        if count(cut) <= budget or not (left or right):
            return cut
        left, right = (left - 1, right) if left > right else (left, right - 1)


def _fit(costs: Sequence[int], room: int) -> int:
    """How many of `costs`, from the first on, have a sum within `room`."""
    for n, cost in enumerate(costs):
        room -= cost
        if room < 0:
            return n
    return len(costs)


def embed(questions: Sequence[Question], i: int, budget: int, count: Callable[[str], int]) -> str:
    """Question i's passage between the passages that follow and precede it in the set, `budget` tokens in all.

    The answer is in the middle. A passage that has one of the accepted answers in it stays out, so only the question's
    own passage answers it.
    """
    asked = questions[i]
    after = _collect(_others(questions, i, 1), asked, budget, count)
    before = _collect(_others(questions, i, -1), asked, budget, count)
    head = "".join(f"{passage}\n" for passage in reversed(before))
    start, end = asked.place
    text = head + asked.passage + "".join(f"\n{passage}" for passage in after)
    return window(text, (len(head) + start, len(head) + end), budget, count)


def _others(questions: Sequence[Question], i: int, step: int) -> Iterator[str]:
    """The passages from question i on in one direction, half around the set at most."""
    for distance in range(1, (len(questions) - 1) // 2 + 1):
        yield questions[(i + step * distance) % len(questions)].passage


def _collect(passages: Iterator[str], asked: Question, budget: int, count: Callable[[str], int]) -> list[str]:
    """Distinct passages without the answer until they hold `budget` tokens."""
    chosen: list[str] = []
    room = budget
    for passage in passages:
        if room <= 0:
            break
        if passage != asked.passage and passage not in chosen and not contains(passage, list(asked.golds)):
            chosen.append(passage)
            room -= count(passage)
    return chosen
