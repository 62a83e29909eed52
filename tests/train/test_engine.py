"""The engine against a plain PyTorch loop: gradients, clipping, precision, skipped steps; and how it starts."""

import importlib
import math
import os
import subprocess
import sys

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch import nn

import hybridlm.lm.train.engine as module
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.train import OptimConfig, ScheduleConfig
from hybridlm.lm.train.engine import Engine
from hybridlm.lm.train.optim import parameter_groups
from hybridlm.lm.train.schedule import learning_rate
from hybridlm.tests.oracles import assert_close
from hybridlm.tests.train.worker import OPTIM, TOTAL, B, batch, build_model, train

STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return engine.export_state()[0]


def plain_loop(steps: int) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and weights of the same training in nothing but PyTorch, the batch in one piece."""
    model = build_model()
    groups = parameter_groups(model, OPTIM.weight_decay)
    adam = torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps, foreach=False)
    losses, norms = [], []
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, TOTAL, OPTIM)
        ids = batch(step)
        loss = model(ids, labels=ids).loss
        adam.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip).item())
        adam.step()
        losses.append(loss.item())
    return losses, norms, dict(model.named_parameters())


@STAGES
def test_training_is_that_of_a_plain_loop_over_the_whole_batch(start, stage):
    losses, norms, expected = plain_loop(4)
    engine = start(zero_stage=stage)
    assert train(engine, range(4)) == pytest.approx(losses, rel=1e-5)
    assert min(norms[:2]) > OPTIM.clip, "clipping is not exercised"
    for name, found in weights(engine).items():
        assert_close(found, expected[name], 1e-4, name)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_zero_3_gathers_every_parameter_where_it_is_used(start, monkeypatch, recompute, logits):
    """DeepSpeed keeps parameters below 1e5 elements whole; here none is, the tied head and kernels included."""
    settings = module._settings

    def partition_all(*args):
        config = settings(*args)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    monkeypatch.setattr(module, "_settings", partition_all)
    losses, _, expected = plain_loop(3)
    engine = start(zero_stage=3, activation_checkpointing=recompute)
    assert {p.numel() for p in engine.model.parameters()} == {0}, "nothing is partitioned"
    found = []
    for step in range(3):
        ids = batch(step)
        output = engine.forward(input_ids=ids, labels=ids, logits=logits)
        engine.backward(output.loss)
        engine.step(learning_rate(step, TOTAL, OPTIM))
        found.append(output.loss.item())
    assert found == pytest.approx(losses, rel=1e-5)
    for name, weight in weights(engine).items():
        assert_close(weight, expected[name], 1e-4, name)


@STAGES
def test_the_reported_norm_is_that_of_the_summed_gradient_before_clipping(start, stage):
    _, norms, _ = plain_loop(1)
    engine = start(zero_stage=stage)
    for row in batch(0):
        engine.backward(engine.forward(input_ids=row[None], labels=row[None]).loss / B)
    result = engine.step(1e-3)
    assert result.applied and result.grad_norm == pytest.approx(norms[0], rel=1e-5)


@STAGES
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_clipping_scales_the_update_and_zero_switches_it_off(start, stage, clip):
    """Adam forgets a gradient's scale except against eps: with a large eps the first update is lr g / eps."""
    optim = OptimConfig(weight_decay=0, eps=1e3, clip=clip)
    engine = start(optim=optim, zero_stage=stage)
    before = weights(engine)
    ids = batch(0)
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
    norm = engine.step(1e3).grad_norm
    moved = math.sqrt(sum((weights(engine)[name] - old).square().sum().item() for name, old in before.items()))
    assert moved == pytest.approx(min(norm, clip or math.inf), rel=2e-2)


@STAGES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_decay_parameters_are_float32_where_they_are_used(start, stage, precision):
    seen = {}
    model = build_model()
    mixer = next(model.mixers())
    assert isinstance(mixer, MIXERS["gated_deltanet"])
    gates = mixer._gates

    def look(x):
        g, beta = gates(x)
        seen.update(A_log=mixer.A_log.dtype, dt_bias=mixer.dt_bias.dtype, g=g.dtype, beta=beta.dtype)
        seen["projection"] = mixer.ab_proj(x).dtype
        return g, beta

    mixer._gates = look
    engine = start(model, zero_stage=stage, precision=precision)
    ids = batch(0)
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
    engine.step(1e-3)
    assert seen.pop("projection") == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert set(seen.values()) == {torch.float32}, seen
    assert {tensor.dtype for part in engine.export_state() for tensor in part.values()} == {torch.float32}


@STAGES
def test_micro_batch_gradients_are_summed_in_float32(start, stage):
    """2^-12 vanishes beside 1 in bf16 and beside nothing in float32: 64 small gradients after a large one must show."""
    engine = start(optim=OptimConfig(weight_decay=0, eps=1e3, clip=0), zero_stage=stage, precision="bf16")
    ids = batch(0)[:1]
    norms = []
    for small in (0, 64):
        engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
        for _ in range(small):
            engine.backward(engine.forward(input_ids=ids, labels=ids).loss * 2**-12)
        norms.append(engine.step(0.0).grad_norm)
    assert norms[1] / norms[0] == pytest.approx(1 + 64 * 2**-12, rel=1e-4)


@STAGES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step(start, stage, precision, bad):
    engine = start(zero_stage=stage, precision=precision)
    train(engine, range(2))
    model, optimizer = engine.export_state()
    ids = batch(2)
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss * bad)
    assert engine.step(1e-3) == (math.inf, False)
    after_model, after_optimizer = engine.export_state()
    assert all(torch.equal(after_model[name], old) for name, old in model.items())
    assert all(torch.equal(after_optimizer[name], old) for name, old in optimizer.items())

    clean = start(zero_stage=stage, precision=precision)
    train(clean, range(2))
    assert train(engine, range(2, 4)) == train(clean, range(2, 4)), "the bad gradient left something behind"


@STAGES
def test_activation_checkpointing_changes_neither_numbers_nor_names(start, stage):
    plain, recomputing = start(zero_stage=stage), start(zero_stage=stage, activation_checkpointing=True)
    assert train(recomputing, range(3)) == pytest.approx(train(plain, range(3)), rel=1e-6)
    assert recomputing.shapes() == plain.shapes()


def test_activation_checkpointing_runs_each_block_twice(start):
    model = build_model()
    calls = []
    for block in model.layers():
        block.ffn.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = batch(0)
    engine = start(model, activation_checkpointing=True)
    loss = engine.forward(input_ids=ids, labels=ids, logits=False).loss
    assert len(calls) == 2
    engine.backward(loss)
    assert len(calls) == 4


@pytest.mark.slow
@STAGES
def test_compiled_dense_parts_train_alike(start, stage):
    plain, compiled = start(zero_stage=stage), start(zero_stage=stage, compile=True)
    assert train(compiled, range(3)) == pytest.approx(train(plain, range(3)), rel=1e-5)
    assert compiled.shapes() == plain.shapes()


def test_shapes_are_those_of_the_whole_model(start):
    model = build_model()
    model.register_buffer("counts", torch.zeros(3))
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert start(model, zero_stage=3).shapes() == expected


def test_a_zero_learning_rate_moves_nothing(start):
    engine = start()
    before = weights(engine)
    ids = batch(0)
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
    engine.step(0.0)
    assert all(torch.equal(found, before[name]) for name, found in weights(engine).items())


def test_collectives_of_one_process(start):
    engine = start()
    assert (engine.rank, engine.world_size, engine.is_main) == (0, 1, True)
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for op in ("sum", "max", "min"):
        y = engine.all_reduce(x, op)
        assert torch.equal(x, y) and y is not x and y.data_ptr() != x.data_ptr()


def test_an_impossible_schedule_fails_at_the_start(start):
    with pytest.raises(ConfigError, match="do not fit into train"):
        start(optim=OptimConfig(schedule=ScheduleConfig(warmup=6, decay=6)))


def test_deepspeed_builds_no_helper_and_still_would(start, monkeypatch):
    """When the last assertion fails, DeepSpeed no longer builds the helper by itself: drop the workaround."""
    start()
    backend = importlib.import_module("deepspeed.comm.torch")
    assert deepspeed.comm.comm.cdb.shm_comm_op is None
    built = []
    builder = type(deepspeed.accelerator.get_accelerator().create_op_builder("ShareMemCommBuilder"))
    monkeypatch.setattr(builder, "load", lambda self: built.append(self.NAME))
    backend.build_shm_op()
    assert built == []
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, builder.NAME, True)
    backend.build_shm_op()
    assert built == ["deepspeed_shm_comm"]


def test_it_starts_without_a_launcher_in_silence(tmp_path):
    """A fresh process with no launcher's variables and no compiled extension: nothing printed, nothing built."""
    program = (
        "from hybridlm.tests.train.worker import *\n"
        "engine = Engine(build_model(), OPTIM, train_config(zero_stage=1), TOTAL)\n"
        "train(engine, range(1))"
    )
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    env = {key: value for key, value in os.environ.items() if key not in launcher}
    env |= {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_group_of_one_needs_no_port(start):
    start()
    assert dist.get_world_size() == 1 and "MASTER_PORT" not in os.environ
