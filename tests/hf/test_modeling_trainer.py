"""The `hybridlm` model type under transformers' Trainer: gradients, evaluation, resuming, recomputation."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, pad
from transformers import Trainer, TrainingArguments

from hybridlm.lm.hf.modeling import HybridLMForCausalLM
from hybridlm.tests.hf.helpers import VOCAB, tokens
from hybridlm.tests.hf.wrapped import small
from hybridlm.tests.oracles import assert_close

LENGTHS = (9, 3, 12, 5, 7, 12, 4, 10)
ROWS = [{"input_ids": tokens(n, seed=i), "labels": tokens(n, seed=i)} for i, n in enumerate(LENGTHS)]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Padded on the right, as text collators do."""
    T = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        key: torch.stack([pad(row[key], (0, T - len(row[key])), value=v) for row in rows]) for key, v in fill.items()
    }
    return batch | {"attention_mask": (batch["labels"] != -100).long()}


def trainer(folder: Path, model: HybridLMForCausalLM | None = None, metrics=None, **how) -> Trainer:
    """Plain steps of gradient descent in the order of ROWS, so that weights can be compared."""
    given = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
    }
    settings = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    args = TrainingArguments(str(folder), **(given | settings | how))
    model = model or small()
    return Trainer(model, args, data_collator=collate, train_dataset=ROWS, eval_dataset=ROWS, compute_metrics=metrics)


def trained(folder: Path, **how) -> dict[str, torch.Tensor]:
    run = trainer(folder, **how)
    run.train()
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float = 1e-3) -> None:
    """By how they moved: a small difference of float32 weights has lost digits, a wrong mean is off by far more."""
    start = small().state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert not torch.equal(tensor, start[name]), name
        assert_close(found[name] - start[name], tensor - start[name], bound, name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights after two steps on four rows each."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_first_step_is_the_gradient_of_the_mean(tmp_path):
    model, batch = small().train(), collate(ROWS[:4])
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    expected = {f"model.{name}": p.detach() - 0.1 * p.grad for name, p in model.model.named_parameters()}
    found = trained(tmp_path, max_steps=1)
    assert_weights({name: found[name] for name in expected}, expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, whole, rows):
    """Rows have 2 to 11 targets: a mean of means would be off by tens of percent."""
    how = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 4 // rows}
    assert_weights(trained(tmp_path, **how), whole)


def test_recomputation_changes_nothing(tmp_path, whole):
    assert_weights(trained(tmp_path, gradient_checkpointing=True), whole)


def test_training_goes_on_from_its_checkpoint(tmp_path, whole):
    trained(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    run = trainer(tmp_path, model=small(seed=7))
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 2
    assert_weights(run.model.state_dict(), whole)


def test_evaluation_and_prediction(tmp_path):
    model = small()
    run = trainer(tmp_path, model, per_device_eval_batch_size=1)
    with torch.no_grad():
        own = [model(row["input_ids"][None], labels=row["labels"][None]) for row in ROWS]
    assert run.evaluate()["eval_loss"] == pytest.approx(sum(float(x.loss) for x in own) / len(ROWS), rel=1e-5)
    found = run.predict(ROWS[2:3])
    assert found.predictions.shape == (1, 12, VOCAB)
    assert_close(torch.from_numpy(found.predictions), own[2].logits, 1e-6, "logits")
    assert found.metrics["test_loss"] == pytest.approx(float(own[2].loss), rel=1e-5)


def test_metrics_get_logits_and_labels_alone(tmp_path):
    def accuracy(given):
        hits = (given.predictions[:, :-1].argmax(-1) == given.label_ids[:, 1:])[given.label_ids[:, 1:] != -100]
        return {"accuracy": hits.mean(), "n": len(hits)}

    model = small()
    found = trainer(tmp_path, model, accuracy, per_device_eval_batch_size=3).evaluate()
    batch = collate(ROWS)
    right = (
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].argmax(-1)
        == batch["labels"][:, 1:]
    )
    kept = batch["labels"][:, 1:] != -100
    assert found["eval_n"] == int(kept.sum()) == sum(LENGTHS) - len(LENGTHS)
    assert found["eval_accuracy"] == pytest.approx(float(right[kept].float().mean()))


def test_smoothed_labels_are_shifted_too(tmp_path):
    model = small()
    found = trainer(tmp_path, model, label_smoothing_factor=0.1, per_device_eval_batch_size=8).evaluate()["eval_loss"]
    batch = collate(ROWS)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_rows_of_like_length_and_autocast(tmp_path):
    run = trainer(tmp_path, train_sampling_strategy="group_by_length", bf16=True, learning_rate=0.1, max_steps=4)
    assert run.train().training_loss > 0 and {p.dtype for p in run.model.parameters()} == {torch.float32}
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 4 and all(0 < loss < 10 for loss in losses)
