"""Indirect objects and coloured objects: what the examples show, what n-grams can know of them, and reuse of layers."""

from collections import Counter

import pytest
import torch

from hybridlm.eval.synthetic.circuits import (
    FIRST_NAME,
    N_COLOURS,
    N_OBJECTS,
    ColouredObjects,
    IndirectObject,
    reuse_between,
    reuse_score,
)
from hybridlm.lm.parts.context import Context
from hybridlm.tests.eval.synthetic.definitions import certain, rows
from hybridlm.tests.model.helpers import build

TASKS = (IndirectObject(), ColouredObjects())


def solve_names(tokens: list[int]) -> int:
    said = Counter(token for token in tokens if FIRST_NAME <= token < FIRST_NAME + 20)
    assert sorted(said.values()) == [1, 2]
    return min(said, key=lambda name: said[name])


def solve_colours(tokens: list[int]) -> int:
    """The colour before the asked object, in the last question."""
    question = tokens[-11:]
    return question[question.index(question[-2]) - 1]


@pytest.mark.parametrize(("task", "solve"), zip(TASKS, (solve_names, solve_colours), strict=True))
def test_the_rule_in_plain_python_solves_it(task, solve):
    examples = task.sample(200, 0)
    solved = [solve(tokens) for tokens, _ in rows(examples)]
    assert examples.labelled[:, -1].all() and examples.labelled.sum() == 200
    scores = task.scores(certain(solved, task.vocab_size), examples)
    assert scores["accuracy"].min() == scores["among"].min() == scores["logit_difference"].min() == 1


def test_both_orders_of_the_names_are_as_frequent():
    first = 0
    for tokens, asked in rows(IndirectObject().sample(300, 0)):
        names = [token for token in tokens if FIRST_NAME <= token < FIRST_NAME + 20]
        (answer,) = asked.values()
        assert names in ([names[2], answer, names[2]], [answer, names[2], names[2]])
        first += names[0] == answer
    assert first == 150


def test_the_two_tasks_share_no_id():
    names, colours = (set(task.sample(300, 0).inputs.unique().tolist()) for task in TASKS)
    assert not names & colours


def test_the_example_never_holds_the_answer_and_every_place_is_asked_for():
    places, answers = Counter(), Counter()
    n = 6000
    for tokens, asked in rows(ColouredObjects().sample(n, 0)):
        (answer,) = asked.values()
        shot, question = tokens[:13], tokens[13:]
        assert answer not in shot and shot[11] == solve_colours(shot[:11])
        for block in (shot, question):
            assert len(set(block[0:8:3])) == len(set(block[1:8:3])) == 3
            assert all(N_OBJECTS <= c < N_OBJECTS + N_COLOURS for c in block[0:8:3])
        places[question[0:8:3].index(answer)] += 1
        answers[answer] += 1
    assert len(answers) == N_COLOURS
    for counts in (places, answers):
        expected = n / len(counts)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_the_answer_follows_the_objects_when_they_change_places():
    task = ColouredObjects()
    examples = task.sample(100, 0)
    turned = examples.inputs.clone()
    turned[:, [14, 17, 20]] = examples.inputs[:, [17, 20, 14]]  # each object one place to the left
    for (before, asked), after in zip(rows(examples), turned.tolist(), strict=True):
        (answer,) = asked.values()
        colours = before[13:22:3]
        assert solve_colours(after) == colours[colours.index(answer) - 1] != answer


@pytest.mark.parametrize(("task", "chance"), zip(TASKS, (1 / 2, 1 / 3), strict=True))
def test_counts_of_n_grams_are_at_chance_among_the_candidates(task, chance):
    seen, n = Counter(), 4000
    for tokens, asked in rows(task.sample(20_000, 1)):
        seen.update((*tokens[-2:], answer) for answer in asked.values())
    examples = task.sample(n, 2)
    counts = [[seen[*tokens[-2:], i] for i in range(task.vocab_size)] for tokens, _ in rows(examples)]
    noise = 0.5 * torch.rand(n, task.vocab_size, generator=torch.Generator().manual_seed(0))  # breaks ties
    among = task.scores(torch.tensor(counts) + noise, examples)["among"].mean().item()
    assert abs(among - chance) < 4 * (chance * (1 - chance) / n) ** 0.5
    assert {a.value for a in task.anchors() if a.who == "chance"} == {chance}


def test_logit_difference_is_taken_from_the_mean_of_the_others():
    task = ColouredObjects()
    examples = task.sample(1, 0)
    answer, *others = task.candidates(examples)[0].tolist()
    logits = torch.zeros(1, 128)  # a model's vocabulary may be larger than a task's
    logits[0, answer], logits[0, others[0]], logits[0, others[1]] = 3.0, 1.0, 2.0
    logits[0, 100] = 9.0
    scores = {name: score.item() for name, score in task.scores(logits, examples).items()}
    assert scores == {"accuracy": 0, "exact": 0, "among": 1, "logit_difference": 1.5}


@pytest.fixture
def model():
    """Random, with layers of quite different weight."""
    torch.manual_seed(0)
    pattern = ["gated_deltanet", "attention", "gla", "attention"]
    model = build(pattern=pattern, n_layers=4, vocab_size=128, context=64)
    with torch.no_grad():
        for i, mixer in enumerate(model.mixers()):
            mixer.o_proj.weight.mul_((20.0, 2.0, 60.0, 6.0)[i])
    return model


def test_a_layer_that_writes_nothing_has_no_effect(model):
    with torch.no_grad():
        list(model.mixers())[1].o_proj.weight.zero_()
    effects = reuse_score(model, TASKS, n=32).effects
    assert effects.shape == (2, 4) and (effects[:, 1] == 0).all() and (effects[:, [0, 2, 3]] != 0).all()


def test_ablation_puts_the_mean_over_examples_in_place_of_a_mixer(model):
    task = ColouredObjects()
    examples = task.sample(16, 3)
    model.eval()
    with torch.no_grad():
        x = model.embed(examples.inputs)
        for i, block in enumerate(model.layers()):
            y = block.mixer(block.mixer_norm(x), Context.dense(16, task.length, None, examples.inputs.device)).y
            x = x + (y.mean(0, keepdim=True) if i == 2 else y)
            x = x + block.ffn(block.ffn_norm(x))
        ablated = task.scores(model.head(model.norm(x))[:, -1], examples)["logit_difference"].mean()
        whole = task.scores(model(examples.inputs).logits[:, -1], examples)["logit_difference"].mean()
    effects = reuse_score(model, (task, task), n=16, seed=3).effects
    assert effects[0, 2].item() == pytest.approx((whole - ablated).item(), abs=1e-5)


def test_a_task_reuses_all_of_its_own_layers_and_the_model_is_left_as_it_was(model):
    model.train()
    inputs = TASKS[1].sample(2, 0).inputs
    before = model(inputs).logits
    score = reuse_score(model, (TASKS[1], TASKS[1]), n=32)
    assert score.spearman == pytest.approx(1) and score.jaccard == 1
    assert model.training and torch.equal(model(inputs).logits, before)


def test_another_draw_of_the_examples_gives_the_same_score():
    """Layers that add up what was said before, each in its own measure: what was said twice, or before, wins."""
    model = build(pattern=["attention"], n_layers=5, d_model=128, vocab_size=128, context=24, ffn=None)
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(128))
        for mixer, weight in zip(model.mixers(), (1, 6, 2, 8, 4), strict=True):
            mixer.qkv_proj.weight.zero_()
            mixer.qkv_proj.weight[256:] = torch.eye(128)
            mixer.o_proj.weight.copy_(0.01 * weight * torch.eye(128))
    first, second = (reuse_score(model, TASKS, n=100, seed=seed) for seed in (1, 2))
    assert (first.effects < 0).all()  # without them, the right answer fares better
    assert first.spearman > 0.8 and first.jaccard == 1
    assert abs(first.spearman - second.spearman) < 0.05 and abs(first.jaccard - second.jaccard) < 0.05


def test_results_hold_the_reuse_between_two_circuit_tasks_and_no_others(model):
    score = reuse_score(model, TASKS)
    found = reuse_between(model, [TASKS[0], TASKS[0], TASKS[1]])["reuse"]
    assert (found["spearman"], found["jaccard"]) == (score.spearman, score.jaccard)
    assert found["effects"] == dict(zip(("indirect_object", "coloured_objects"), score.effects.tolist(), strict=True))
    assert reuse_between(model, [TASKS[0], TASKS[0]]) == reuse_between(model, []) == {}


def test_a_vocabulary_that_is_too_small_is_an_error():
    with pytest.raises(ValueError, match=r"indirect_object.vocab_size: 128 exceeds the model's 64"):
        reuse_score(build(vocab_size=64), TASKS)


def test_names_need_a_vocabulary():
    with pytest.raises(ValueError, match=r"vocab_size: 40 leaves no filler beside n_names=20.*use at least 51"):
        IndirectObject.parse({"vocab_size": 40})
