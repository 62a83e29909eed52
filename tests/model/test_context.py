"""Sequences in their context: positions, the place within a chunk, and what is made once for all layers."""

import pytest
import torch

from hybridlm.kernels import gated_scan
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.context import Context
from hybridlm.tests.model.helpers import build, tokens

CPU = torch.device("cpu")


def test_positions_count_from_each_sequence_s_past():
    assert Context.dense(2, 3, None, CPU).positions.tolist() == [[0, 1, 2]]
    assert Context.dense(2, 2, [5, 5], CPU).positions.tolist() == [[5, 6]]
    assert Context.dense(2, 2, [5, 0], CPU).positions.tolist() == [[5, 6], [0, 1]]
    assert Context.documents_after([2, 0, 3], [7, 1, 0], CPU).positions.tolist() == [[7, 8, 0, 1, 2]]


def test_a_prefill_cut_anywhere_knows_its_place_in_the_chunk():
    assert Context.documents_after([10, 3, 1], [0, 16, 21], CPU).in_chunk(16) == (0, 0, 5)
    assert Context.dense(2, 4, [37, 64], CPU).in_chunk(64) == (37, 0)
    assert Sequences.documents([4, 5]).in_chunk(16) == (0, 0)  # an operator alone: the sequences begin here


def test_one_value_per_shape_and_one_table_per_value():
    made = []

    def table(sequences, size):
        made.append(size)
        return torch.arange(size)

    rows = Context.dense(2, 7, None, CPU)
    assert rows is Context.dense(2, 7, [0, 0], CPU)
    assert rows.once(table, 3) is rows.once(table, 3) and rows.once(table, 4).shape == (4,)
    assert made == [3, 4]


def test_sequences_of_another_tensor_are_refused():
    x = torch.randn(1, 9, 4)
    with pytest.raises(ValueError, match=r"sequences describe \[1, 8, ...\], but the tensor is \[1, 9, 4\]"):
        gated_scan(x, -x.abs(), sequences=Sequences.documents([3, 5]))
    with pytest.raises(ValueError, match="cu_seqlens and sequences are both given"):
        gated_scan(x, -x.abs(), sequences=Sequences.documents([4, 5]), cu_seqlens=torch.tensor([0, 4, 9]))


def test_training_goes_on_after_an_evaluation_under_inference_mode():
    """What an evaluation made once for a shape serves the training step of the same shape."""
    model = build(pattern=list(MIXERS), n_layers=len(MIXERS))
    ids, documents = tokens(2, 37) % 61, Sequences.documents([30, 7, 37])
    with torch.inference_mode():
        model(ids)
        model(ids.view(1, -1), sequences=documents)
    model(ids, labels=ids).loss.backward()
    model(ids.view(1, -1), labels=ids.view(1, -1), sequences=documents).loss.backward()
