"""Synthetic tasks put to a language model: the right tokens at the right places, by a model that knows the answers."""

from types import SimpleNamespace

import pytest
import torch

from hybridlm.eval.synthetic.token_probes import TokenProbes, draw_probes, measure_probes
from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError

MQAR = {"task": "mqar", "vocab_size": 128, "length": 64, "n_pairs": 4, "examples": 30}


CONFIG = Recipe.load("demo", ["model.vocab_size=340"]).model


class Induction:
    """Answers with what came after the first occurrence of the token, as an induction head would."""

    device = torch.device("cpu")
    config = CONFIG

    def __init__(self):
        self.seen: list[torch.Tensor] = []

    def modules(self):
        return iter([])

    def eval(self):
        return self

    def head(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), 340).float()

    def __call__(self, ids, logits):
        self.seen.append(ids)
        following = torch.zeros_like(ids)
        for row, answers in zip(ids.tolist(), following, strict=True):
            first = {}
            for i, token in enumerate(row):
                answers[i] = first.get(token, 339)
                if i:
                    first.setdefault(row[i - 1], token)
        return SimpleNamespace(hidden=following[..., None].float())


def test_an_induction_head_solves_recall_and_the_batch_size_does_not_matter():
    drawn = draw_probes([MQAR], CONFIG)
    one, model = Induction(), Induction()
    alone = measure_probes(one, drawn, front=(1,), batch_tokens=1)  # type: ignore[arg-type]
    probes = measure_probes(model, drawn, front=(1,), checkpoint="step-000004")  # type: ignore[arg-type]
    assert probes.slices == alone.slices and len(one.seen) == 30
    (found,) = probes.slices
    assert (found.accuracy, found.exact, found.stderr, found.n, found.task) == (1.0, 1.0, 0.0, 30, "mqar")
    (ids,) = model.seen
    assert ids.shape == (30, 65) and bool((ids[:, 0] == 1).all())
    assert int(ids[:, 1:].min()) >= 340 - 128 and int(ids.max()) < 340


def test_a_random_model_is_at_chance_and_stays_as_it_was(model):
    model.train()
    before = torch.get_rng_state()
    try:
        (found,) = measure_probes(model, draw_probes([MQAR], CONFIG), front=(1,)).slices
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert found.accuracy < 0.1 and torch.equal(torch.get_rng_state(), before)


def test_nothing_stands_in_front_for_a_model_that_is_asked_so():
    model = Induction()
    (found,) = measure_probes(model, draw_probes([MQAR], CONFIG), front=()).slices  # type: ignore[arg-type]
    assert found.accuracy == 1.0 and model.seen[0].shape == (30, 64) and int(model.seen[0].min()) >= 340 - 128


def test_results_are_kept(tmp_path):
    probes = measure_probes(Induction(), draw_probes([MQAR], CONFIG), front=(1,), checkpoint="step-000004")  # type: ignore
    probes.save(tmp_path / "a" / "token_probes.json")
    assert TokenProbes.load(tmp_path / "a" / "token_probes.json") == probes
    assert list(probes.values().values()) == [1.0]
    assert probes.table().row_count == 1


def test_what_the_model_cannot_read_is_refused():
    with pytest.raises(ConfigError, match=r"eval\.probes\[0\]: .*unknown task 'mqr'.*did you mean 'mqar'"):
        draw_probes([{**MQAR, "task": "mqr"}], CONFIG)
    with pytest.raises(ConfigError, match=r"eval\.probes\[1\]: mqar .* vocab_size=512, the model 340; use at most"):
        draw_probes([MQAR, {**MQAR, "vocab_size": 512}], CONFIG)
    learned = CONFIG.model_copy(update={"positions": "learned", "context": 64})
    with pytest.raises(ConfigError, match=r"eval\.probes\[0\]: .* and BOS: 65 tokens, but .*; use at most 64"):
        draw_probes([MQAR], learned)
    with pytest.raises(ConfigError, match="not about tokens alone"):
        draw_probes([{"task": "regression", "examples": 3}], CONFIG)
