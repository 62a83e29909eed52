"""The protocol: per-example scores, losses, seeds of slices, and the registry."""

import pytest
import torch
from pydantic import ValidationError

from hybridlm.eval.synthetic import TASKS, parse
from hybridlm.eval.synthetic.task import Examples, Task, segment_seeds
from hybridlm.lm.model.loss import IGNORE


class Plain(Task):
    kind = "plain"
    vocab_size: int = 5
    length: int = 3


def test_scores_are_per_example_whatever_the_number_of_its_labels():
    labels = torch.tensor([[1, IGNORE, 2], [IGNORE, 4, IGNORE], [0, 0, 0]])
    answers = torch.tensor([1, 3, 4, 0, 1, 0])
    logits = torch.nn.functional.one_hot(answers, 5).float()
    scores = Plain().scores(logits, Examples(torch.zeros_like(labels), labels))
    assert scores["accuracy"].tolist() == pytest.approx([0.5, 1, 2 / 3])
    assert scores["exact"].tolist() == [0, 1, 0]


def test_values_are_scored_by_squared_error():
    labels = torch.tensor([[1.0, float("nan"), 2.0], [float("nan"), float("nan"), 0.5]])
    examples = Examples(torch.zeros(2, 3, 4), labels)
    outputs = torch.tensor([1.0, 4.0, 0.0])
    assert Plain().scores(outputs, examples)["mse"].tolist() == pytest.approx([2.0, 0.25])
    assert Plain().loss(outputs, labels[examples.labelled]).item() == pytest.approx(4.25 / 3)


def test_cross_entropy_is_taken_in_float32():
    logits, targets = torch.randn(6, 5).bfloat16(), torch.arange(6) % 5
    expected = -logits.double().log_softmax(-1)[torch.arange(6), targets].mean()
    loss = Plain().loss(logits, targets)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_slices_have_seeds_of_their_own_in_disjoint_ranges():
    for seed in (0, 1, 123, 2**40):
        train, test = segment_seeds(seed, 40, 30)
        assert len(set(train + test)) == 70
        assert all(0 <= s < 2**31 for s in train) and all(2**31 <= s < 2**32 for s in test)
        assert segment_seeds(seed, 5, 7) == (train[:5], test[:7])
    assert segment_seeds(0, 9, 9) != segment_seeds(1, 9, 9)


def test_a_task_is_found_by_its_name_and_cannot_change():
    assert all(task.kind == name for name, task in TASKS.items())
    task = parse({"task": "mqar", "length": 32, "n_pairs": 4})
    assert (task.kind, task.label) == ("mqar", "mqar L32 K4")
    with pytest.raises(ValidationError, match="frozen"):
        task.length = 64


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_keeps_the_protocol(name):
    task = TASKS[name]()
    examples, again, other = task.sample(4, 5), task.sample(4, 5), task.sample(4, 6)
    for x, same in zip(examples, again, strict=True):
        torch.testing.assert_close(x, same, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(examples.inputs, other.inputs)
    assert examples.labelled.any(1).all() and examples.labels.shape == (4, task.length)
    if task.input_dim is None:
        assert examples.inputs.shape == (4, task.length) and examples.inputs.dtype == torch.int64
        answers = examples.labels[examples.labelled]
        assert min(examples.inputs.min(), answers.min()) >= 0
        assert max(examples.inputs.max(), answers.max()) < task.vocab_size
    else:
        assert examples.inputs.shape == (4, task.length, task.input_dim) and task.vocab_size == 0
    torch.manual_seed(0)
    assert torch.equal(task.sample(4, 5).inputs, examples.inputs)
