"""Parameters that the layers of a mixer share train as in plain PyTorch, at every ZeRO stage and when recomputed."""

import pytest
import torch

import hybridlm.lm.train.engine as module
from hybridlm.lm.model import HybridLM
from hybridlm.lm.train.optim import parameter_groups
from hybridlm.lm.train.schedule import learning_rate
from hybridlm.tests.oracles import assert_close
from hybridlm.tests.train.worker import OPTIM, TOTAL, batch, build_model

LAYERS = {"pattern": ["hgrn2", "hgrn"]}


def shaken() -> HybridLM:
    model = build_model(**LAYERS)
    with torch.no_grad():
        for shared in model.shared.values():
            shared.table.add_(torch.randn(shared.table.shape, generator=torch.Generator().manual_seed(3)))
    return model


def plain_loop(steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = shaken()
    adam = torch.optim.AdamW(parameter_groups(model, OPTIM.weight_decay), betas=OPTIM.betas, eps=OPTIM.eps)
    losses = []
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, TOTAL, OPTIM)
        loss = model(batch(step), labels=batch(step)).loss
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
        adam.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


@pytest.mark.parametrize(("stage", "recompute"), [(0, True), (1, False), (2, True), (3, False), (3, True)])
def test_tables_train_as_in_plain_pytorch(start, monkeypatch, stage, recompute):
    settings = module._settings

    def partition_all(*args):  # DeepSpeed keeps small parameters whole otherwise
        config = settings(*args)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    monkeypatch.setattr(module, "_settings", partition_all)
    losses, expected = plain_loop(3)
    engine = start(shaken(), zero_stage=stage, activation_checkpointing=recompute)
    found = []
    for step in range(3):
        output = engine.forward(input_ids=batch(step), labels=batch(step))
        engine.backward(output.loss)
        engine.step(learning_rate(step, TOTAL, OPTIM))
        found.append(output.loss.item())
    assert found == pytest.approx(losses, rel=1e-5)
    weights = engine.export_state()[0]
    assert {"shared.hgrn.table", "shared.hgrn2.table"} <= weights.keys()
    for name, weight in weights.items():
        assert_close(weight, expected[name], 1e-4, name)
    assert not torch.equal(weights["shared.hgrn.table"], shaken().shared["hgrn"].table)
