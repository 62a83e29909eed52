import numpy as np
import pytest
import torch

from hybridlm.lm.data.loader import Loader, valid_batches
from hybridlm.lm.parts.errors import ConfigError


def rows_of(batches, context: int) -> list[list[int]]:
    return [row for batch in batches for row in batch.input_ids.view(-1, context).tolist()]


@pytest.fixture
def two(make_pack):
    return [make_pack("a", 60, 1), make_pack("b", 90, 2)]


def make(datasets, **options) -> Loader:
    weights = options.pop("weights", [0.25, 0.75][: len(datasets)])
    return Loader(datasets, weights, **{"context": 32, "batch": 8, "micro_batch": 2, "seed": 5, **options})


def test_an_epoch_holds_every_row_once(make_pack):
    dataset = make_pack(n=100)
    n_rows = dataset.n_tokens // 32
    loader = make([dataset], weights=[1.0], batch=1, micro_batch=1)
    rows = rows_of([batch for _ in range(n_rows) for batch in loader.next_step()], 32)
    stream = dataset.tokens(0, n_rows * 32).reshape(-1, 32).tolist()
    assert sorted(rows) == sorted(stream) and rows != stream


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_order_is_that_of_one_process(two, world_size):
    alone = make(two)
    ranks = [make(two, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(20):
        shares = [rank.next_step() for rank in ranks]
        assert all(len(share) == 4 // world_size for share in shares)
        assert [row for share in shares for row in rows_of(share, 32)] == rows_of(alone.next_step(), 32)
    assert all(rank.state_dict() == alone.state_dict() for rank in ranks)


def test_resuming_equals_going_on_even_with_other_ranks(two):
    whole = make(two)
    steps = [rows_of(whole.next_step(), 32) for _ in range(200)]  # several epochs and blocks
    first = make(two)
    for _ in range(150):
        first.next_step()
    state = first.state_dict()
    assert state["sequences"] == 150 * 8
    resumed, halves = make(two), [make(two, rank=rank, world_size=2) for rank in range(2)]
    for loader in (resumed, *halves):
        loader.load_state_dict(state)
    for step in steps[150:]:
        assert rows_of(resumed.next_step(), 32) == step
        assert [row for half in halves for row in rows_of(half.next_step(), 32)] == step


def test_segments_start_at_rows_and_documents(two, tokenizer):
    loader = make(two)
    for batch in loader.next_step() + loader.next_step():
        ids, bounds = batch.input_ids[0], torch.tensor(batch.sequences.bounds)
        assert batch.input_ids.dtype == torch.int64
        assert batch.input_ids.shape == (1, 64) and bounds[0] == 0 and bounds[-1] == 64
        assert (bounds.diff() > 0).all()
        wanted = {0, 32, 64} | set((ids == tokenizer.bos_id).nonzero().flatten().tolist())
        assert bounds.tolist() == sorted(wanted)
        assert batch.n_targets == 64 - (len(bounds) - 1)


def test_shares_of_the_mixture(two):
    a = {tuple(row) for row in two[0].tokens(0, two[0].n_tokens // 32 * 32).reshape(-1, 32).tolist()}
    loader = make(two)
    rows = [tuple(row) for _ in range(256) for row in rows_of(loader.next_step(), 32)]
    assert abs(sum(row in a for row in rows) - 0.25 * len(rows)) <= 2


def test_refusals(two, make_pack):
    with pytest.raises(ConfigError) as error:
        make(two, batch=6, micro_batch=2, world_size=2)
    assert str(error.value) == (
        "train.batch=6: not divisible by train.micro_batch=2 times 2 processes; "
        "set train.batch to a multiple of 4 or lower train.micro_batch"
    )
    tiny = make_pack("tiny", 1)
    with pytest.raises(ConfigError) as error:
        make([tiny], context=4096)
    assert str(error.value) == (
        f"model.context=4096: source tiny has only {tiny.n_tokens} tokens, less than one row; "
        "lower model.context or give more text"
    )


def test_a_state_of_other_data_is_refused(two):
    loader = make(two)
    state = loader.state_dict()

    def message(other: Loader) -> str:
        with pytest.raises(ConfigError) as error:
            other.load_state_dict(state)
        return str(error.value)

    assert message(make(two, seed=6)) == (
        "resume: the checkpoint's data seed is 5, this recipe's is 6; set seed=5 or start a new run"
    )
    assert message(make(two, context=16)) == (
        "resume: the checkpoint's data context is 32, this recipe's is 16; set model.context=32 or start a new run"
    )
    other = make(two, weights=[0.5, 0.5])
    assert message(other) == (
        f"resume: the checkpoint's data fingerprint is {loader.fingerprint}, this recipe's is {other.fingerprint}; "
        "train on the same data, weights and tokenizer or start a new run"
    )
    assert message(make(two[::-1])).startswith("resume: the checkpoint's data fingerprint is ")


def targets_of(batch) -> list[int]:
    first = set(batch.sequences.bounds[:-1])
    return [token for at, token in enumerate(batch.input_ids[0].tolist()) if at not in first]


@pytest.mark.parametrize("context", [1, 7, 32, 10_000])
def test_validation_asks_for_every_token_but_the_first_of_documents_once(make_pack, context):
    two = [make_pack("few", 8, 1), make_pack("fewer", 5, 2)]
    batches = list(valid_batches(two, context=context, micro_batch=3))
    wanted = []
    for dataset in two:
        tokens, first = dataset.tokens(0, dataset.n_tokens), set(dataset.doc_offsets[:-1].tolist())
        wanted += [token for at, token in enumerate(tokens.tolist()) if at not in first]
    assert [token for batch in batches for token in targets_of(batch)] == wanted
    assert sum(batch.n_targets for batch in batches) == len(wanted)
    assert all(min(batch.sequences.lengths) > 0 for batch in batches)
    assert max(batch.sequences.longest for batch in batches) <= context + 1


def test_validation_context_is_the_document_alone(make_pack, tokenizer):
    dataset = make_pack(n=20)
    for batch in valid_batches([dataset], context=50, micro_batch=4):
        inside = np.setdiff1d(np.arange(batch.input_ids.shape[1]), batch.sequences.bounds)
        assert tokenizer.bos_id not in batch.input_ids[0, inside]


def test_validation_limit_counts_micro_batches(two):
    every = list(valid_batches(two, context=16, micro_batch=2))
    some = list(valid_batches(two, context=16, micro_batch=2, limit=3))
    assert len(some) == 3
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(some, every, strict=False))
