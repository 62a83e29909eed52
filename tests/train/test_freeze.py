"""What is frozen stays bit for bit, counts nowhere, and begins as AdamW begins; at every stage, and after a resume."""

import pytest
import torch
from torch import nn

from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.train import OptimConfig
from hybridlm.lm.recipe.tune import FreezeRule
from hybridlm.lm.train.engine import Engine
from hybridlm.lm.train.freeze import Freezing
from hybridlm.lm.train.optim import parameter_groups
from hybridlm.lm.train.schedule import learning_rate
from hybridlm.tests.oracles import assert_close
from hybridlm.tests.train.worker import OPTIM, TOTAL, B, batch, build_model, checkpoints, train_config

STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
LATE, NEVER = "blocks.0.*", "embed*"
RULES = (FreezeRule(match=[LATE], until=2), FreezeRule(match=[NEVER]))
STRONG = OptimConfig(lr=3e-3, weight_decay=0.5, clip=0.1, betas=(0.9, 0.999), schedule=OPTIM.schedule)


@pytest.fixture
def frozen():
    """Starts engines with parts of the model frozen, and closes them after the test."""
    torch.set_num_threads(1)
    engines: list[Engine] = []

    def start(rules=RULES, seed=0, spoil=None, **train) -> Engine:
        model = build_model(seed)
        if spoil:
            model.get_parameter(spoil).register_hook(lambda grad: grad * torch.nan)
        engines.append(Engine(model, STRONG, train_config(**train), TOTAL, Freezing(model, rules, TOTAL)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def steps(engine: Engine, which: range) -> list[float]:
    """The gradient norm of each step."""
    norms = []
    for step in which:
        engine.begin(step)
        for row in batch(step):
            engine.backward(engine.forward(input_ids=row[None], labels=row[None], logits=False).loss / B)
        norms.append(engine.step(learning_rate(step, TOTAL, STRONG)).grad_norm)
    return norms


def plain_loop(n: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same in PyTorch alone: parameters are handed to optimizers when they begin to train."""
    model = build_model()
    model.embed.weight.requires_grad_(False)
    late = [p for name, p in model.named_parameters() if name.startswith("blocks.0.")]
    begun = {step: [] for step in (0, 2)}
    for group in parameter_groups(model, STRONG.weight_decay):
        for step, wanted in ((0, False), (2, True)):
            begun[step].append({**group, "params": [p for p in group["params"] if any(p is q for q in late) is wanted]})
    adams = {step: torch.optim.AdamW(groups, betas=STRONG.betas, foreach=False) for step, groups in begun.items()}
    norms = []
    for step in range(n):
        active = [adam for begin, adam in adams.items() if step >= begin]
        model.zero_grad()
        model(batch(step), labels=batch(step)).loss.backward()
        trained = [p for adam in active for group in adam.param_groups for p in group["params"]]
        norms.append(nn.utils.clip_grad_norm_(trained, STRONG.clip).item())
        for adam in active:
            for group in adam.param_groups:
                group["lr"] = learning_rate(step, TOTAL, STRONG)
            adam.step()
    return norms, dict(model.named_parameters())


@STAGES
def test_training_is_that_of_optimizers_that_get_parameters_when_they_begin(frozen, stage):
    norms, expected = plain_loop(4)
    engine = frozen(zero_stage=stage)
    before = engine.export_state()[0]
    found = steps(engine, range(2))
    weights, optimizer = engine.export_state()
    late = [name for name in weights if name.startswith("blocks.0.")]
    for name in [*late, "embed.weight"]:
        assert torch.equal(weights[name], before[name]), name
    assert not any(optimizer[f"{key}.{name}"].any() for name in late for key in ("exp_avg", "exp_avg_sq"))
    assert "exp_avg.embed.weight" not in optimizer
    counts = dict(zip(dict(engine.model.named_parameters()), optimizer["updates"].tolist(), strict=True))
    assert {counts[name] for name in late} == {0} and counts["norm.weight"] == 2
    found += steps(engine, range(2, 4))
    assert found == pytest.approx(norms, rel=1e-5)
    weights = engine.export_state()[0]
    for name, weight in weights.items():
        assert_close(weight, expected[name].detach(), 1e-5, name)
    assert torch.equal(weights["embed.weight"], before["embed.weight"])
    assert not torch.equal(weights[late[0]], before[late[0]])


def same(found, expected) -> bool:
    """Model and optimizer, bit for bit."""
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(("stage", "other"), [(0, 2), (1, 3), (3, 0)])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resume_before_and_after_the_thaw_is_bitwise_the_uninterrupted_run(frozen, tmp_path, stage, other, stop):
    whole, second, elsewhere = (
        frozen(zero_stage=stage),
        frozen(seed=1, zero_stage=stage),
        frozen(seed=1, zero_stage=other),
    )
    steps(whole, range(stop))
    kept = checkpoints(tmp_path)
    kept.save(whole, stop, {})
    for engine in (second, elsewhere):
        kept.load(engine, kept.latest())
        assert same(engine.export_state(), whole.export_state())
    steps(whole, range(stop, 4))
    steps(second, range(stop, 4))
    assert same(second.export_state(), whole.export_state())


@STAGES
def test_a_bad_gradient_of_what_is_frozen_is_nothing(frozen, stage):
    engine, same = frozen(zero_stage=stage, spoil="blocks.0.ffn.down_proj.weight"), frozen(zero_stage=stage)
    assert steps(engine, range(2)) == steps(same, range(2))
    assert steps(engine, range(2, 3)) == [float("inf")]


def test_equal_counts_are_kept_as_the_one_number_that_they_were(frozen):
    engine = frozen(rules=(), zero_stage=1)
    steps(engine, range(2))
    assert engine.export_state()[1]["updates"].tolist() == 2


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (RULES, RULES[:1], r"embed\.weight did not train before and would now; set the recipe's freeze back"),
        (
            RULES,
            RULES[1:],
            r"updates and .*, but neither is frozen longer than the other; set the recipe's freeze back",
        ),
    ],
)
def test_a_resume_that_would_train_what_has_no_moments_is_refused(frozen, tmp_path, before, after, says):
    first = frozen(rules=before)
    steps(first, range(3))
    kept = checkpoints(tmp_path)
    kept.save(first, 3, {})
    second = frozen(rules=after)
    untouched = second.export_state()[0]
    with pytest.raises(ConfigError, match=rf"step-000003: .*{says}"):
        kept.load(second, kept.latest())
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in second.export_state()[0].items())


def test_a_resume_may_freeze_more(frozen, tmp_path):
    first = frozen(rules=())
    steps(first, range(2))
    kept = checkpoints(tmp_path)
    kept.save(first, 2, {})
    second = frozen()
    kept.load(second, kept.latest())
    before = second.export_state()[0]["embed.weight"]
    steps(second, range(2, 4))
    assert torch.equal(second.export_state()[0]["embed.weight"], before)


def test_the_longest_rule_holds_and_a_tied_head_is_the_embedding():
    model = build_model()
    rules = [FreezeRule(match=["blocks.*"], until=2), FreezeRule(match=["blocks.1.ffn.*"], until=0.5)]
    freezing = Freezing(model, [*rules, FreezeRule(match=["lm_head.*"])], TOTAL)
    named = dict(model.named_parameters())
    assert not named["embed.weight"].requires_grad
    assert {name: freezing.until[p] for name, p in named.items() if p in freezing.until} == {
        name: 4 if ".1.ffn." in name else 2 for name in named if name.startswith("blocks")
    }


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"match": ["embd*"]}, r"^freeze\.0\.match: 'embd\*' fits no parameter; the nearest is 'embed\.weight'$"),
        ({"match": ["norm.weight", "x" * 200]}, r"^freeze\.0\.match: 'x+\.\.\. fits no parameter; the nearest is '"),
        (
            {"match": ["norm*"], "until": 2.5},
            r"^freeze\.0\.until: 2\.5 is neither a fraction below 1 nor a whole number",
        ),
        ({"match": ["*"]}, r"^freeze: nothing is left to train"),
    ],
)
def test_rules_that_cannot_be_meant_are_one_line(rule, says):
    with pytest.raises(ConfigError, match=says):
        Freezing(build_model(), [FreezeRule(**rule)], TOTAL)


def test_what_begins_later_than_the_run_ends_can_begin_when_the_run_is_made_longer():
    model = build_model()
    freezing = Freezing(model, [FreezeRule(match=["norm.weight"], until=20)], TOTAL)
    assert list(freezing.until.values()) == [20] and model.norm.weight.requires_grad
