"""Distillation against whole logits in plain PyTorch, at every stage; what the teacher is not; what is refused."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.lm.model import HybridLM
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.files import as_override
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.lm.recipe.tune import DistillConfig
from hybridlm.lm.run import Run
from hybridlm.lm.train.distill import Teacher, check_teacher
from hybridlm.lm.train.optim import parameter_groups
from hybridlm.lm.train.schedule import learning_rate
from hybridlm.tests.oracles import assert_close
from hybridlm.tests.train.worker import OPTIM, TOTAL, B, T, batch, build_model
from hybridlm.tools.pretrain import pretrain

BOUNDS = (0, 5, 6, T)  # documents of a row


def teacher_model() -> HybridLM:
    """Sharper than a model that has just been drawn: something to be learned."""
    model = build_model(seed=7, pattern=["attention"])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    return model


def whole_loss(student: HybridLM, teacher: HybridLM, row: Tensor, config: DistillConfig) -> tuple[Tensor, ...]:
    """The sums of loss, ce, kl and hidden distance over a row's documents, and the targets, from whole logits."""
    sums, n = [], 0
    for start, stop in itertools.pairwise(BOUNDS):
        ids = row[None, start:stop]
        with torch.no_grad():
            theirs = teacher(ids, layers=True)
        mine = student(ids, layers=True)
        t = config.temperature
        logits, their_logits = mine.logits[0, :-1].double(), theirs.logits[0, :-1].double()
        ce = F.cross_entropy(logits, ids[0, 1:], reduction="sum")
        log_p, log_q = (logits / t).log_softmax(-1), (their_logits / t).log_softmax(-1)
        kl = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
        chosen = [slice(1, None), slice(0, 0)][config.layers == "last"]
        pairs = [*zip(mine.layers[chosen], theirs.layers[chosen], strict=True), (mine.hidden, theirs.hidden)]
        each = [(2 - 2 * F.cosine_similarity(a[0, :-1].double(), b[0, :-1].double(), -1)).sum() for a, b in pairs]
        hidden = torch.stack(each).mean()
        total = (1 - config.weight) * ce + config.weight * t * t * kl + config.hidden * hidden
        sums.append(torch.stack([total, ce, kl, hidden]))
        n += stop - start - 1
    return *(sum(sums).unbind()), n


def plain_loop(config: DistillConfig, steps: int):
    student, teacher = build_model(), teacher_model()
    adam = torch.optim.AdamW(parameter_groups(student, OPTIM.weight_decay), betas=OPTIM.betas, eps=OPTIM.eps)
    found = []
    for step in range(steps):
        rows = [whole_loss(student, teacher, row, config) for row in batch(step)]
        sums = [sum(column) / sum(row[4] for row in rows) for column in zip(*(row[:4] for row in rows), strict=True)]
        adam.zero_grad()
        sums[0].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), OPTIM.clip)
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, TOTAL, OPTIM)
        adam.step()
        found.append([x.item() for x in sums])
    return found, dict(student.named_parameters())


@pytest.mark.parametrize(
    ("stage", "config", "recompute"),
    [
        (0, DistillConfig(teacher="t", temperature=2.0, weight=0.7, hidden=0.5, layers="all"), True),
        (1, DistillConfig(teacher="t", weight=1.0), False),
        (2, DistillConfig(teacher="t", weight=0.3, hidden=2.0), True),
        (3, DistillConfig(teacher="t", temperature=2.0, weight=0.7, hidden=0.5, layers="all"), True),
        (3, DistillConfig(teacher="t", weight=0.0, hidden=1.0), False),
    ],
)
def test_training_is_that_of_a_plain_loop_over_whole_logits(start, stage, config, recompute):
    expected, weights = plain_loop(config, 3)
    engine = start(zero_stage=stage, activation_checkpointing=recompute)
    teacher = Teacher(teacher_model(), config, engine, bf16=False)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    for step in range(3):
        sums = torch.zeros(4, dtype=torch.float64)
        for row in batch(step):
            output = teacher.forward(row[None], Sequences.documents((5, 1, T - 6)))
            engine.backward(output.loss / B)
            terms = (output.terms.get(name, torch.tensor(0.0)) for name in ("ce", "kl", "hidden"))
            sums += torch.stack([output.loss.detach(), *terms]).double() / B
        engine.step(learning_rate(step, TOTAL, OPTIM))
        wanted = [*expected[step][:3], expected[step][3] if config.hidden else 0.0]
        assert sums.tolist() == pytest.approx(wanted, rel=1e-5)
    state, optimizer = engine.export_state()
    for name, tensor in state.items():
        assert_close(tensor, weights[name].detach(), 1e-4, name)
    assert state.keys() == dict(build_model().named_parameters()).keys() and len(optimizer) == 2 * len(state) + 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())
    assert (
        all(p.grad is None and not p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_that_is_its_teacher_is_at_no_distance(start, precision):
    engine = start(precision=precision, zero_stage=0)
    config = DistillConfig(teacher="t", weight=1.0, temperature=2.0, hidden=1.0, layers="all")
    teacher = Teacher(build_model(), config, engine, bf16=precision == "bf16")
    output = teacher.forward(batch(0)[:1], Sequences.documents((5, 1, T - 6)))
    # gradients make PyTorch take other kernels: the last bits of float32 differ, and a teacher in float32 beside a
    # student in bf16 would be at a distance of 1e-5
    assert abs(output.terms["kl"]) < 1e-6 and 0 <= output.terms["hidden"] < 1e-6 and abs(output.loss) < 1e-5


def go(recipe, *overrides) -> Run:
    return pretrain(Recipe.load(recipe, overrides), Console(quiet=True))


def log(run: Run, kind: str = "train") -> dict[int, dict]:
    return {
        r["step"]: {k: v for k, v in r.items() if k not in ("time", "seconds")}
        for r in run.metrics()
        if r["kind"] == kind
    }


@pytest.fixture
def taught(tiny_recipe) -> list[str]:
    """A trained teacher, of another kind than the student, and the overrides that make it one."""
    teacher = go(tiny_recipe, "name=teacher", "model.pattern=[attention]", "train.steps=4", "optim.lr=0.02")
    return [f"distill={{teacher: {teacher.folder}, weight: 0.7, temperature: 2.0, hidden: 0.5, layers: all}}"]


def test_a_run_logs_its_terms_by_name_and_the_loss_of_its_labels(tiny_recipe, taught):
    run = go(tiny_recipe, *taught, "train.steps=8")
    steps = log(run)
    plain = log(go(tiny_recipe, "name=plain", "train.steps=8"))
    assert steps[1]["loss"] == pytest.approx(plain[1]["loss"], rel=1e-6)  # the student's, before it has learned
    assert steps[8]["loss"] != plain[8]["loss"]
    for record in steps.values():
        assert record["ce"] == record["loss"] and record["kl"] > 0 and 0 < record["hidden"] < 4
    assert steps[8]["kl"] < steps[1]["kl"] and steps[8]["hidden"] < steps[1]["hidden"]
    assert not {"ce", "kl", "hidden"} & plain[1].keys()
    model = HybridLM.from_run(run)
    assert {"held_out/loss", "held_out/bits_per_byte"} <= log(run, "valid/held_out")[8].keys()
    assert run.weights().keys() == dict(model.named_parameters()).keys()
    teacher = json.loads((run.folder / "origins.json").read_text())["teacher"]
    assert (teacher["name"], teacher["checkpoint"]) == ("teacher", "step-000004")


def test_micro_batches_do_not_change_what_is_learned(tiny_recipe, taught):
    one, four = (go(tiny_recipe, *taught, f"name=m{n}", f"train.micro_batch={n}", "train.steps=4") for n in (1, 4))
    a, b = log(one), log(four)
    for step in a:
        for name in ("loss", "kl", "hidden", "norm"):
            assert a[step][name] == pytest.approx(b[step][name], rel=2e-4), name


def test_a_resumed_run_is_bitwise_the_uninterrupted_one_and_ends_without_a_teacher(tiny_recipe, taught):
    given = [*taught, "optim.schedule={kind: constant, warmup: 0}", "train.valid_every=0", "train.precision=bf16"]
    whole = go(tiny_recipe, *given, "name=whole")
    go(tiny_recipe, *given, "name=parts", "train.steps=4")
    parts = go(tiny_recipe, *given, "name=parts")
    assert {s: r["loss"] for s, r in log(parts).items()} == {s: r["loss"] for s, r in log(whole).items()}
    assert all(torch.equal(tensor, whole.weights()[name]) for name, tensor in parts.weights().items())
    shutil.rmtree(whole.folder.parent / "teacher")
    go(tiny_recipe, *given, "name=parts")  # nothing is left to learn
    with pytest.raises(ConfigError, match=r"^distill\.teacher: run '.*teacher': no recipe\.yaml there"):
        go(tiny_recipe, *given, "name=parts", "train.steps=12")


def test_a_teacher_that_has_learned_more_since_is_a_change_that_is_noted(tiny_recipe, taught):
    teacher = ["name=teacher", "model.pattern=[attention]", "optim.lr=0.02"]
    run = go(tiny_recipe, *taught, "train.steps=4")
    go(tiny_recipe, *teacher, "train.steps=6")
    go(tiny_recipe, *taught, "train.steps=6")
    noted = [json.loads(line) for line in (run.folder / "changes.jsonl").read_text().splitlines()]
    assert {(one["key"], one["before"], one["after"]) for one in noted} == {
        ("train.steps", 4, 6),
        ("teacher.checkpoint", "step-000004", "step-000006"),
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.vocab_size=290", r"^distill\.teacher: '.*teacher' has another tokenizer than this recipe's data; take"),
        (
            "data.tokenizer={kind: file, path: TEACHER/tokenizer}; model.vocab_size=310",
            r"^distill\.teacher: its vocab_size is 300, that of the student 310$",
        ),
        (
            "model.d_model=16",
            r"^distill\.teacher: its d_model is 32, that of the student 16; distill\.hidden=0 compares",
        ),
        (
            "model.n_layers=4",
            r"^distill\.teacher: its n_layers is 2, that of the student 4; distill\.hidden=0 compares",
        ),
        ("distill.teacher=/nowhere", r"^distill\.teacher: run '/nowhere': no recipe\.yaml there"),
        (
            "distill={teacher: x, weight: 0}",
            r"distill: nothing is learned of the teacher; give weight or hidden, or leave",
        ),
    ],
)
def test_a_teacher_that_cannot_be_one_is_refused_before_anything_is_written(tiny_recipe, taught, change, says):
    with pytest.raises(ConfigError, match=says) as error:
        change = change.replace("TEACHER", f"{tiny_recipe.parent}/runs/teacher")
        go(tiny_recipe, *taught, *change.split("; "))
    assert "\n" not in str(error.value)
    assert not Recipe.load(tiny_recipe).run_folder().exists()


def test_a_run_is_not_its_own_teacher(tiny_recipe, taught):
    run = go(tiny_recipe, *taught, "train.steps=2")
    own = as_override("distill.teacher", str(run.folder / ".." / run.folder.name))
    with pytest.raises(
        ConfigError, match=r"^distill\.teacher: run .*: is the one that is trained, whose weights change"
    ):
        go(tiny_recipe, *taught, own, "train.steps=4")


def test_a_narrow_student_learns_the_logits_alone(tiny_recipe, taught):
    run = go(tiny_recipe, *taught, "distill.hidden=0", "model.d_model=16", "model.n_layers=4", "train.steps=2")
    assert log(run)[2]["kl"] > 0 and "hidden" not in log(run)[2]


def test_a_teacher_with_fewer_learned_positions_than_the_context_is_refused():
    taught = Recipe.load("demo", ["distill={teacher: x}", "model.context=64"])
    other = Recipe.load("demo", ["model.positions=learned", "model.context=32"])
    same = SimpleNamespace(fingerprint="a")
    run = SimpleNamespace(recipe=other, tokenizer=lambda: same)
    with pytest.raises(
        ConfigError, match=r"^distill\.teacher: it has 32 positions, and model\.context=64 are trained on"
    ):
        check_teacher(run, taught, same)
