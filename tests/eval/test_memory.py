import pytest
import torch

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.eval.forward import budgets as memory
from hybridlm.eval.forward.budgets import automatic_batch_tokens, free_bytes, state_tokens, token_bytes


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = free_bytes(torch.device("cpu"))
    assert machine > 0
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes(torch.device("cpu")) == 4000
    (tmp_path / "memory.max").write_text("900\n")
    assert free_bytes(torch.device("cpu")) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 4000


def test_more_memory_longer_batches_up_to_the_most(small_hybrid, monkeypatch):
    found = []
    for free in (3e8, 6e8, 1.2e9, 1e13):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: int(free))
        found.append(automatic_batch_tokens(small_hybrid, 64))
    assert found == sorted(set(found)) and found[-1] == memory.MOST


def test_the_harness_takes_auto_or_a_number(small_hybrid, tokenizer, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3 * 10**8)
    harness = HybridHarness(small_hybrid, tokenizer, max_length=64, batch_tokens="auto")
    assert harness.batch_tokens == automatic_batch_tokens(small_hybrid, 64)
    assert HybridHarness(small_hybrid, tokenizer, max_length=64).batch_tokens == 8192


def test_a_large_state_counts_as_the_tokens_it_weighs(small_hybrid):
    """Many short rows would otherwise fill the memory with states that no budget of tokens sees."""
    assert state_tokens(small_hybrid) == small_hybrid.state_bytes(1) // token_bytes(small_hybrid)
    assert token_bytes(small_hybrid) > 4 * (small_hybrid.config.d_model + 32)


@pytest.mark.parametrize("weight", [1, 7])
def test_rows_with_states_fill_the_budget_by_what_they_weigh(small_hybrid, monkeypatch, weight):
    from hybridlm.eval.forward import scoring

    monkeypatch.setattr(scoring, "state_tokens", lambda _: weight)
    rows = []
    hook = small_hybrid.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["cu_seqlens"]) - 1), with_kwargs=True
    )
    windows = [scoring.Window((1, *range(10, 25)), (a, b)) for a in range(30, 60) for b in range(2)]
    try:
        with scoring.inference(small_hybrid):
            scores = dict(scoring.score_windows(small_hybrid, windows, 100))
    finally:
        hook.remove()
    assert len(scores) == 60
    assert max(rows) == 100 // max(weight, 17)
