"""Questions on a passage as a sentence to complete, in the prompt of Based and JRT.

Somebody reworded Based's questions ("What is the capital of France?" became "The capital of France is"); there is no
rule that does so for every question without a wrong sentence. Here the sentence is the passage's own: the one that has
the answer, cut before it. So it is right for every question that is kept, and it asks for recall word for word, as
Based's FDA and SWDE do, where Based's SQuAD also asks to see through other words.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .passages import Question
from .task import contains

LEAST_WORDS = 4
_SENTENCE_END = re.compile(r"""[.!?]["'\u201d\u2019)\]]*\s+(?=["'\u201c\u2018(\[]?[A-Z0-9])|\n+""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|[A-Z]\.[A-Z]|Mrs?|Ms|Dr|St|Jr|Sr|vs|Gen|Col|Lt|Capt|Gov|Rev|Prof|No|ca?|Mt|Ft)$"
)


class Cloze(NamedTuple):
    """stem: the beginning of a sentence of the passage. asked.place: the stem with the answer that follows it there.

    asked.golds: as the passage writes it first, then the accepted answers that lie in it; none is in the stem.
    """

    asked: Question
    stem: str


def cloze(question: Question) -> Cloze | None:
    """The question as a sentence to complete; None if its answer has no sentence with LEAST_WORDS words before it.

    Of several sentences it is the one whose beginning shares most words with the question, of equal ones the first.
    """
    asked = _words(question.question)
    found = max(
        _stems(question),
        key=lambda span: (len(_words(question.passage[span[0] : span[1]]) & asked), -span[1]),
        default=None,
    )
    if found is None:
        return None
    first, cut, end = found
    answer = question.passage[cut:end]
    golds = dict.fromkeys([answer, *(gold for gold in question.golds if contains(answer, [gold]))])
    return Cloze(question._replace(golds=tuple(golds), place=(first, end)), question.passage[first:cut].rstrip())


def clozes(questions: Iterable[Question]) -> list[Cloze]:
    """Those that can be completed, each once: two questions may have the same answer in the same sentence."""
    found: dict[tuple[str, str], Cloze] = {}
    for question in questions:
        made = cloze(question)
        if made:
            found.setdefault((made.asked.passage, made.stem), made)
    return list(found.values())


def _stems(question: Question) -> Iterator[tuple[int, int, int]]:
    """(start of the sentence, start of the answer, its end) wherever the sentence's beginning says what comes next."""
    passage = question.passage
    for gold in question.golds:
        for match in re.finditer(rf"(?<=\s){re.escape(gold)}(?!\w)", passage, re.IGNORECASE):
            first = _sentence_start(passage, match.start())
            stem = passage[first : match.start()].rstrip()
            alone = passage.lower().count(stem.lower()) == 1
            if len(stem.split()) >= LEAST_WORDS and alone and not contains(stem, list(question.golds)):
                yield first, *match.span()


def _sentence_start(passage: str, place: int) -> int:
    ends = [match for match in _SENTENCE_END.finditer(passage) if match.end() <= place]
    real = [end.end() for end in ends if end.group()[0] == "\n" or not _ABBREVIATION.search(passage[: end.start()])]
    return max(real, default=len(passage) - len(passage.lstrip()))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def completion(context: str, question: str, stem: str, twice: bool) -> str:
    """What JRT (arXiv 2407.05483) has a model go on from: the context without `stem` behind it, ". " and the stem.

    twice: the question as it was asked, the context, and the context again, with the stem.
    """
    context = context.strip()
    while stem and context.lower().endswith(stem.lower()):
        context = context[: -len(stem)]
    context = context.strip().strip(".")
    if not twice:
        return f"{context}. {stem}"
    context = context.strip()
    return f"{question.strip(':')} {context}.\n{context}. {stem}"
