"""The recall benchmarks of Based and JRT as their authors put them on the Hugging Face hub, prompts as in their code.

Based (Arora et al. 2024, arXiv 2402.18668) has whole prompts in the column `text`; JRT (Arora et al. 2024, arXiv
2407.05483) contexts and clozes apart. Contexts come whole: JRT's cut to a number of tokens is not made.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import datasets
from lm_eval.api.task import ConfigurableTask

from ...lm.parts.errors import DataError
from ..tasks.entry import Options, make
from .cloze import completion
from .task import RecallTask, recall_config

Row = dict[str, Any]
SUMMARY = "Summary of information above..."
MARKS = ("[PAR]", "[DOC]", "[TLE]")


def text_alone(row: Row) -> str:
    """Based: the text, whose end is the key or the cloze."""
    return row["text"].strip()


def keyed_twice(row: Row) -> str:
    """JRT on FDA and SWDE: what is asked for, the document, and the document again with its key; white space stripped.

    JRT drops a summary that some of SWDE's texts have behind the document.
    """
    key = row["key"].strip()
    body = row["text"].partition(SUMMARY)[0].strip()
    while body.lower().endswith(f"{key}:".lower()):
        body = body[: -len(key) - 1].strip()
    body = body.strip(".").strip() + "."
    key = key[0].upper() + key[1:]
    return f"Information about {key}. {body}\n{body} {key}:"


def squad_twice(row: Row) -> str:
    """JRT on SQuAD: question and passage before Based's prompt."""
    passage = row["context"].partition("Question:")[0]
    return f"{row['question']} {passage}\n{row['text'].strip()}"


def joined(row: Row, twice: bool) -> str:
    """JRT on TriviaQA, Natural Questions and DROP; TriviaQA's marks of paragraphs, documents and titles go."""
    context = row["context"]
    for mark in MARKS:
        context = context.replace(mark, "")
    return completion(context, row["orig_question"] if twice else "", row["question"].strip(), twice)


class Hub(NamedTuple):
    """Builds a task of one data set. columns: what `prompt` reads; answers: the column of one or of all golds.

    closed: the column that is asked without its context, if there is one.
    """

    about: str
    dataset: str
    prompt: Callable[[Row], str]
    columns: tuple[str, ...]
    answers: str
    closed: str | None = None

    def __call__(self, name: str, options: Options) -> ConfigurableTask:
        documents = [document for row in self._rows() if (document := self._document(row))]
        return make(recall_config(name), {"test": datasets.Dataset.from_list(documents)}, options, RecallTask)

    def _rows(self) -> list[Row]:
        try:
            rows = datasets.load_dataset(self.dataset, split="validation")
        except Exception as error:  # the hub's client raises errors of several libraries
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"its texts are on the Hugging Face hub as {self.dataset}, which could not be read "
                f"({reason}); run it once with a network and without HF_HUB_OFFLINE, or take squad_cloze, drop_cloze, "
                "triviaqa_recall_1024, nq_recall_1024"
            ) from None
        missing = [column for column in (*self.columns, self.answers) if column not in rows.column_names]
        if missing:
            raise DataError(
                f"its texts: {self.dataset} on the Hugging Face hub has no column {_listed(missing)}, only "
                f"{_listed(rows.column_names)}; its layout has changed on the hub, or a copy in the cache "
                "of datasets is another one's: remove that copy and run again"
            )
        return rows.to_list()

    def _document(self, row: Row) -> Row | None:
        """None without an answer."""
        given = row[self.answers]
        golds = [gold.strip() for gold in ([given] if isinstance(given, str) else given) if gold.strip()]
        closed = row[self.closed].strip() if self.closed else ""
        return {"prompt": self.prompt(row), "golds": golds, "closed": closed} if golds else None


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


BASED = "Based's prompts, a text to go on from (Arora et al. 2024, arXiv 2402.18668)"
JRT = "JRT's prompts, a text to go on from (Arora et al. 2024, arXiv 2407.05483)"
JRT_TWICE = f"{JRT}, read twice"


def _tasks() -> Iterator[tuple[str, Hub]]:
    for name, dataset in (("fda", "hazyresearch/based-fda"), ("swde", "hazyresearch/based-swde-v2")):
        yield name, Hub(BASED, dataset, text_alone, ("text",), "value")
        yield f"{name}_twice", Hub(JRT_TWICE, dataset, keyed_twice, ("text", "key"), "value")
    squad = "hazyresearch/based-squad"
    yield "squad_completion", Hub(BASED, squad, text_alone, ("text",), "value")
    yield "squad_completion_twice", Hub(JRT_TWICE, squad, squad_twice, ("text", "context", "question"), "value")
    for name in ("based_triviaqa", "based_drop", "based_nq_512", "based_nq_1024", "based_nq_2048"):
        dataset, columns = f"hazyresearch/{name}", ("context", "question")
        yield name, Hub(JRT, dataset, partial(joined, twice=False), columns, "answers", "question")
        columns = (*columns, "orig_question")
        yield f"{name}_twice", Hub(JRT_TWICE, dataset, partial(joined, twice=True), columns, "answers", "question")


HUB = dict(_tasks())
