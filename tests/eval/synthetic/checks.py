"""What holds for every synthetic task: an oracle solves it, a guesser scores chance, bytes depend on the seed alone."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridlm.eval.synthetic import TASKS
from hybridlm.eval.synthetic.task import Examples, Task


def answers(examples: Examples) -> torch.Tensor:
    """The labels where they are due, row by row."""
    return examples.labels[examples.labels != -100]


def check_solved(task: Task, n: int = 40) -> None:
    """Logits of the right answers score 1; a single wrong one lowers its own example's accuracy and exact match."""
    examples = task.sample(n, 3)
    assert examples.inputs.shape == examples.labels.shape == (n, task.length)
    assert examples.inputs.min() >= 0 and examples.inputs.max() < task.vocab_size
    right = answers(examples)
    assert right.min() >= 0 and right.max() < task.vocab_size
    logits = F.one_hot(right, task.vocab_size).float()
    scores = task.scores(logits, examples)
    assert all(bool((scores[name] == 1).all()) and scores[name].shape == (n,) for name in ("accuracy", "exact"))
    logits[0] = logits[0].roll(1)
    scores = task.scores(logits, examples)
    first = int((examples.labels[0] != -100).sum())
    assert scores["accuracy"][0] == pytest.approx(1 - 1 / first) and scores["exact"][0] == 0
    assert bool((scores["exact"][1:] == 1).all())


def check_chance(task: Task, n: int = 2000) -> None:
    """Answers drawn from the values that occur as answers are right as often as the chance anchor says."""
    examples = task.sample(n, 4)
    right = answers(examples)
    guesses = right.unique()[torch.from_numpy(np.random.default_rng(0).integers(0, len(right.unique()), len(right)))]
    scores = task.scores(F.one_hot(guesses, task.vocab_size).float(), examples)
    chance = {a.who: a.value for a in task.anchors() if a.metric == "accuracy"}["chance"]
    error = 5 * (chance * (1 - chance) / n) ** 0.5
    assert scores["accuracy"].mean().item() == pytest.approx(chance, abs=error)


def digest(kind: str, options: dict, seed: int, n: int = 64) -> str:
    """A hash of the bytes of n examples."""
    examples = TASKS[kind].parse(options).sample(n, seed)
    return hashlib.sha256(examples.inputs.numpy().tobytes() + examples.labels.numpy().tobytes()).hexdigest()


def check_fresh_process(tasks: dict[str, dict]) -> None:
    """{kind: options}: the same bytes in another process, whatever global generators do; others for another seed."""
    np.random.seed(1)
    torch.manual_seed(1)
    here = [digest(kind, options, 7) for kind, options in tasks.items()]
    code = (
        "import sys, json; from hybridlm.tests.eval.synthetic.checks import digest;"
        "[print(digest(kind, options, 7)) for kind, options in json.loads(sys.argv[1]).items()]"
    )
    run = subprocess.run([sys.executable, "-c", code, json.dumps(tasks)], capture_output=True, text=True)
    assert run.stdout.split() == here, run.stderr
    assert not set(here) & {digest(kind, options, 8) for kind, options in tasks.items()}
