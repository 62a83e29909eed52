"""Questions whose answer stands in their passage, out of SQuAD, DROP and CoQA."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..tasks.olmo_data import requests


class Question(NamedTuple):
    """golds: accepted answers. place: the span of `passage` that has to be there to answer, the first gold in it."""

    passage: str
    question: str
    golds: tuple[str, ...]
    place: tuple[int, int]


def _search(text: str, passage: str) -> re.Match[str] | None:
    return re.search(re.escape(text), passage, re.IGNORECASE)


def answerable(passage: str, question: str, golds: list[str]) -> Question | None:
    """The question with those golds that occur in the passage in front; None without such, or if they are one letter.

    Upper and lower case are equal; its place is where the first gold first occurs. One letter or digit would be
    contained in nearly any text (JRT, arXiv 2407.05483, leaves these out as well).
    """
    distinct = [gold for gold in dict.fromkeys(gold.strip() for gold in golds) if len(gold) > 1]
    places = {gold: place.span() for gold in distinct if (place := _search(gold, passage))}
    if not places:
        return None
    rest = [gold for gold in distinct if gold not in places]
    return Question(passage, question.strip(), (*places, *rest), next(iter(places.values())))


def squad(cache: Path) -> Iterator[Question | None]:
    """1000 validation questions of SQuAD 1.1 (Rajpurkar et al. 2016)."""
    for row in requests(cache, "squad/bpb_5shot"):
        _title, _, body = row["doc"]["query"].partition("\nBackground: ")
        passage, _, question = body.removesuffix("\nAnswer:").rpartition("\nQuestion: ")
        yield answerable(passage, question, row["doc"]["answers_text"])


def drop(cache: Path) -> Iterator[Question | None]:
    """Of 1000 validation questions of DROP (Dua et al. 2019) those whose answer is one span of the passage."""
    for row in requests(cache, "drop/bpb_5shot"):
        doc = row["doc"]
        spans = [answer[0] for answer in doc["answers"] if len(answer) == 1]
        yield answerable(doc["passage"], doc["question"], spans)


def coqa(cache: Path) -> Iterator[Question | None]:
    """Of 7983 validation turns of CoQA (Reddy et al. 2019) those answered in words of the story; earlier turns first.

    "yes" and "no" are no recall, so they are left out.
    """
    for row in requests(cache, "coqa/bpb_0shot"):
        doc = row["doc"]
        golds = [answer for answer in doc["answers"] if answer.lower().strip(".! ") not in ("yes", "no")]
        yield answerable(doc["story"], _turns(doc), golds)


def _turns(doc: dict[str, Any]) -> str:
    """The question of this turn behind the earlier turns with their answers; `previous_qa` lists the later ones too."""
    turn = int(doc["id"].rpartition("_turn")[2])
    earlier = [f"{qa['question']}\nAnswer: {qa['answer']}" for qa in doc["previous_qa"][:turn]]
    return "\nQuestion: ".join([*earlier, doc["question"]])


Source = Callable[[Path], Iterator[Question | None]]
