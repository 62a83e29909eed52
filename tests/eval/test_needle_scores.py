"""Needles put to models: an oracle finds them all, noise finds none, and a model is left as it was."""

import io
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from hybridlm.eval.forward.long_context import check_length, greedy, length_limit, prefill
from hybridlm.eval.forward.scoring import inference
from hybridlm.eval.needles import TASKS, Needles, Questions, measure_needles, plot_heat_map
from hybridlm.eval.needles.prompt import Prompt
from hybridlm.eval.needles.results import Answered, summarise
from hybridlm.lm.parts.errors import ConfigError

from .conftest import build
from .needle_oracle import HAY, HIDING, TOKENIZER, Stub, oracle


@pytest.mark.parametrize("task", HIDING)
def test_an_oracle_scores_everything_and_a_random_model_nothing(task):
    questions = Questions([task], [900], HAY, depths=[0.0, 1.0], beyond="run")
    best = measure_needles(Stub(TOKENIZER, oracle(TOKENIZER)), TOKENIZER, questions)  # type: ignore[arg-type]
    (total,) = best.summary
    assert total.score == 1 and total.n == 2 and total.stderr == 0
    assert all(cell.score == 1 and cell.truncated == 0 for cell in best.cells)
    assert [cell.depth for cell in best.cells] == ([0.0, 1.0] if TASKS[task].one_depth else [None])
    if task not in ("multivalue", "multiquery"):  # there is one order to say it in
        assert total.answer_accuracy == total.answer_exact == 1 and total.answer_nats < 1e-6
    rng = random.Random(0)
    noise = measure_needles(Stub(TOKENIZER, lambda _: rng.randrange(3, 340)), TOKENIZER, questions)  # type: ignore
    assert noise.summary[0].score == 0 and noise.summary[0].answer_exact == 0


def test_rows_end_when_they_have_said_it_and_without_generation_nothing_is_written():
    stub = Stub(TOKENIZER, oracle(TOKENIZER))
    questions = Questions(["single_1"], [900], HAY, depths=1, beyond="run")
    measure_needles(stub, TOKENIZER, questions)  # type: ignore[arg-type]
    assert stub.reads[:2] == [512, 900 - 128 - 512] and max(stub.reads) == 512  # never more than a chunk
    assert len(stub.reads) < 20
    silent = measure_needles(stub, TOKENIZER, questions, generate=False)  # type: ignore[arg-type]
    assert silent.summary[0].score is None and silent.summary[0].answer_exact == 1
    with pytest.raises(ValueError, match="no cell has a depth and a score"):
        plot_heat_map(silent, "unused.png")


def test_measuring_leaves_the_model_and_random_states_as_they_were(model):
    model.train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    questions = Questions(["vt"], [700], HAY, depths=2, beyond="run")
    try:
        one = measure_needles(model, TOKENIZER, questions)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[union-attr]
    two = measure_needles(model, TOKENIZER, questions, batch_tokens=100_000)
    for a, b in zip(one.summary, two.summary, strict=True):
        assert a.answer_nats == pytest.approx(b.answer_nats, rel=1e-4) and a.score == b.score
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint == questions.fingerprint != replace(questions, seed=1).fingerprint


def test_chunked_prefill_and_greedy_continuation_equal_generate(model):
    ids = torch.randint(3, 340, (3, 45), generator=torch.Generator().manual_seed(0))
    with inference(model):
        for chunk in (7, 45, 100):
            hidden, cache = prefill(model, ids, chunk)
            new = greedy(model, hidden, cache, 12, lambda tokens: False)
            assert torch.equal(new, model.generate(ids, 12, temperature=0.0)[:, 45:])
            assert cache.lengths == [45 + 11] * 3  # the last token is not read


def test_means_and_errors_of_hand_made_answers():
    prompts = [Prompt("single_1", 700, depth, np.zeros(1), ("7",), (7,), 128) for depth in (0.0, 0.0, 1.0)]
    answered = [Answered(p, s, s / 2, 0.0, 1 + s) for p, s in zip(prompts, (1.0, 0.0, 0.5), strict=True)]
    cells, [total] = summarise(answered, 600)
    assert [(cell.depth, cell.score, cell.n) for cell in cells] == [(0.0, 0.5, 2), (1.0, 0.5, 1)]
    assert (total.score, total.answer_accuracy, total.answer_nats, total.n, total.beyond) == (0.5, 0.25, 1.5, 3, 3)
    assert total.stderr == pytest.approx(0.5 / math.sqrt(3))
    assert summarise(answered[:1], None)[1][0].stderr is None


def test_lengths_beyond_the_model_are_refused_or_counted():
    rotary, recurrent = build("[attention]"), build("[gated_deltanet]")
    context = rotary.config.context
    assert length_limit(rotary.config) == context and length_limit(recurrent.config) is None
    nope, window = build("[{attention: {rope: null}}]"), build("[{attention: {window: 16}}]")
    assert length_limit(nope.config) is None and length_limit(window.config) is None
    questions = Questions(["single_1"], [context + 1], HAY, depths=1)
    with pytest.raises(ConfigError, match=f"lengths: {context + 1} tokens, but .* trained to {context}; use at most"):
        measure_needles(rotary, TOKENIZER, questions)
    run = replace(questions, beyond="run")
    assert measure_needles(rotary, TOKENIZER, run, generate=False).summary[0].beyond == 1
    assert measure_needles(recurrent, TOKENIZER, questions, generate=False).summary[0].beyond == 0
    learned = rotary.config.model_copy(update={"positions": "learned"})
    with pytest.raises(ConfigError, match=r"model\.positions=learned ends at"):
        check_length(learned, context + 1, "run")


def test_results_are_kept_shown_and_drawn(tmp_path):
    questions = Questions(["single_1", "vt"], [700], HAY, depths=2, beyond="run", name="hay")
    stub = Stub(TOKENIZER, oracle(TOKENIZER))
    needles = measure_needles(stub, TOKENIZER, questions, checkpoint="step-000007")  # type: ignore
    needles.save(tmp_path / "a" / "needles.json")
    assert Needles.load(tmp_path / "a" / "needles.json") == needles
    content = json.loads((tmp_path / "a" / "needles.json").read_text())
    assert (content["kind"], content["checkpoint"], content["haystack"]) == ("needles", "step-000007", "hay")
    assert {"task", "length", "depth", "score", "n", "truncated"} <= content["cells"][0].keys()
    assert {"task", "length", "score", "stderr", "n"} <= content["summary"][0].keys()
    assert needles.values()["single_1/700/score"] == 1
    out = io.StringIO()
    Console(file=out, width=80).print(needles.table())
    assert "2 beyond │" in out.getvalue() and "beyond: prompts longer than" in out.getvalue()
    for name in ("map.png", "map.svg"):
        assert plot_heat_map(needles, tmp_path / name).stat().st_size > 3000
    assert needles.plot(tmp_path) == tmp_path / "needles.png" and (tmp_path / "needles.png").is_file()
    alone = measure_needles(stub, TOKENIZER, replace(questions, tasks=["vt"]), generate=False)  # type: ignore
    assert alone.plot(tmp_path) is None  # no depth
