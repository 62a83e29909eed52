"""Which parameters decay, and that AdamW is the textbook's."""

import pytest
import torch
from torch import nn

from hybridlm.lm.recipe.train import OptimConfig
from hybridlm.lm.train.optim import GuardedAdamW, build_optimizer, parameter_groups
from hybridlm.tests.train.worker import build_model


def names(model: nn.Module) -> dict[str, list[str]]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [by_id[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.1)}


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_decay(tied):
    model = build_model(tie_embeddings=tied)
    groups = names(model)
    assert set(groups["matrices"]) | set(groups["rest"]) == {name for name, _ in model.named_parameters()}
    assert all(name.endswith("proj.weight") or name == "lm_head.weight" for name in groups["matrices"])
    assert {n for n in dict(model.named_parameters()) if n.endswith("_proj.weight")} <= set(groups["matrices"])
    assert ("lm_head.weight" in groups["matrices"]) is not tied
    for name in (
        "embed.weight",
        "norm.weight",
        "blocks.0.mixer.A_log",
        "blocks.0.mixer.dt_bias",
        "blocks.0.mixer.conv",
    ):
        assert name in groups["rest"]
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]


def test_biases_embeddings_and_frozen_parameters():
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "e": nn.Embedding(5, 3), "f": nn.Linear(4, 4), "n": nn.LayerNorm(4)})
    model["f"].requires_grad_(False)
    assert names(model) == {"matrices": ["a.weight"], "rest": ["a.bias", "e.weight", "n.weight", "n.bias"]}
    assert list(names(nn.Linear(3, 4, bias=False))) == ["matrices"]


@pytest.mark.parametrize("build", [build_optimizer, GuardedAdamW])
def test_updates_are_the_papers(build):
    torch.manual_seed(0)
    linear, optim = nn.Linear(3, 2).double(), OptimConfig(lr=0.1, betas=(0.8, 0.9), weight_decay=0.5, clip=0)
    adam = build(linear, optim)
    w = [linear.weight.detach().clone(), linear.bias.detach().clone()]
    m, v = [torch.zeros_like(x) for x in w], [torch.zeros_like(x) for x in w]
    for t in range(1, 4):
        for i, (p, decay) in enumerate(((linear.weight, 0.5), (linear.bias, 0.0))):
            p.grad = torch.randn_like(p)
            m[i] = 0.8 * m[i] + 0.2 * p.grad
            v[i] = 0.9 * v[i] + 0.1 * p.grad**2
            step = (m[i] / (1 - 0.8**t)) / ((v[i] / (1 - 0.9**t)).sqrt() + optim.eps)
            w[i] = w[i] - 0.1 * (step + decay * w[i])
        adam.step()
    torch.testing.assert_close(linear.weight.detach(), w[0])
    torch.testing.assert_close(linear.bias.detach(), w[1])


def test_updates_do_not_depend_on_threads_or_repetition():
    def run(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        linear = nn.Linear(300, 401)
        adam = build_optimizer(linear, OptimConfig())
        for _ in range(3):
            linear.weight.grad, linear.bias.grad = torch.randn(401, 300), torch.randn(401)
            adam.step()
        return linear.weight.detach()

    first = run(1)
    assert torch.equal(first, run(1)) and torch.equal(first, run(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_changes_nothing(bad):
    linear = nn.Linear(3, 2)
    adam = GuardedAdamW(linear, OptimConfig())
    linear.weight.grad = torch.ones(2, 3)
    adam.step()  # the bias has no gradient: a zero one
    before = [p.detach().clone() for p in linear.parameters()]
    moments = [state["exp_avg"].clone() for state in adam.state.values()]
    assert len(moments) == 2 and not adam.overflow
    linear.weight.grad[0, 0] = bad
    adam.step()
    assert adam.overflow
    assert all(torch.equal(p, old) for p, old in zip(linear.parameters(), before, strict=True))
    assert all(torch.equal(s["exp_avg"], old) for s, old in zip(adam.state.values(), moments, strict=True))
    assert all(state["step"] == 1 for state in adam.state.values())
