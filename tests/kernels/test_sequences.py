"""Sequence layouts: gather and scatter are inverse, chunks come step by step, longest sequence first."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.kernels.shared.sequences import Sequences

CPU = torch.device("cpu")


def cu(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    size=st.sampled_from([1, 4, 16]), data=st.data(),
)  # fmt: skip
def test_scatter_inverts_gather_over_any_step_ranges(lengths, size, data):
    x = torch.randn(1, sum(lengths), 2, 3)
    chunks = Sequences.of(x, cu(lengths)).chunks(size, CPU)
    steps = len(chunks.active)
    cuts = sorted({0, steps, *data.draw(st.lists(st.integers(0, steps), max_size=2))})
    out = torch.full_like(x, torch.nan)
    for a, b in itertools.pairwise(cuts):
        part = chunks.gather(x, a, b)
        assert part.shape == (chunks.first_row[b] - chunks.first_row[a], 2, chunks.size, 3)
        chunks.scatter(part, out, a, b)
    assert torch.equal(out, x)
    padding = steps and chunks.gather(torch.ones_like(x), 0, steps).sum().item()
    assert padding == x.numel()  # slots behind a document's end are zero


def test_chunks_are_step_major_longest_first():
    x = torch.arange(1, 12.0).view(1, 11, 1)
    chunks = Sequences.of(x, cu([2, 0, 5, 4])).chunks(2, CPU)
    assert chunks.active == (3, 2, 1)
    expected = [[3, 4], [8, 9], [1, 2], [5, 6], [10, 11], [7, 0]]
    assert chunks.gather(x, 0, 3)[:, 0].tolist() == expected
    assert chunks.order.tolist() == [2, 3, 0, 1]


def test_equal_lengths_need_no_index():
    x = torch.randn(1, 12, 2)
    rows = Sequences.of(x.view(3, 4, 2), None).chunks(2, CPU)
    packed = Sequences.of(x, cu([4, 4, 4])).chunks(2, CPU)
    assert rows.token is None and packed.token is None
    assert torch.equal(rows.gather(x.view(3, 4, 2), 0, 2), packed.gather(x, 0, 2))


@pytest.mark.parametrize("longest, size", [(1, 1), (2, 2), (3, 4), (16, 16), (17, 16)])
def test_chunk_is_no_larger_than_the_longest_sequence_needs(longest, size):
    assert Sequences(1, longest).chunks(16, CPU).size == size


def test_host_copy_follows_changes_in_place():
    x, offsets = torch.zeros(1, 6), torch.tensor([0, 2, 6])
    assert Sequences.of(x, offsets).lengths == (2, 4)
    offsets[1] = 5
    assert Sequences.of(x, offsets).lengths == (5, 1)
    with torch.inference_mode():
        assert Sequences.of(x, torch.tensor([0, 1, 6])).lengths == (1, 5)


OFFSETS = "cu_seqlens is {} of shape {}; allowed: offsets that start at 0, never decrease and end at T=6"
KIND = "cu_seqlens is {}; allowed: a tensor of int32 or int64, e.g. torch.tensor([0, 5, 9])"


@pytest.mark.parametrize(
    "batch, offsets, message",
    [
        (1, [0, 6], KIND.format("list")),
        (1, torch.tensor([0.0, 6]), KIND.format("torch.float32")),
        (
            2,
            torch.tensor([0, 6]),
            "cu_seqlens packs documents along T, so B must be 1, not 2; reshape to [1, B*T, ...]",
        ),
        (1, torch.tensor([1, 6]), OFFSETS.format("[1, 6]", [2])),
        (1, torch.tensor([0, 5]), OFFSETS.format("[0, 5]", [2])),
        (1, torch.tensor([0, 4, 3, 6]), OFFSETS.format("[0, 4, 3, 6]", [4])),
        (1, torch.tensor([[0, 6]]), OFFSETS.format("[0, 6]", [1, 2])),
        (1, torch.tensor([0]), OFFSETS.format("[0]", [1])),
        (1, torch.tensor([0, 1, 2, 3, 4, 5, 5, 5, 5, 7]), OFFSETS.format("[0, 1, 2, 3, 4, 5, 5, 5, ... 7]", [10])),
    ],
)
def test_errors(batch, offsets, message):
    with pytest.raises(ValueError) as error:
        Sequences.of(torch.zeros(batch, 6), offsets)
    assert str(error.value) == message
