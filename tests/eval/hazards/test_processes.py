"""H23: the requests of an evaluation among several processes."""

import json
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.eval.forward.processes import share_out
from hybridlm.lm.data.tokenizer import Tokenizer
from hybridlm.tests.eval.hazards.worker import one_of_two, score


@pytest.mark.slow
def test_h23_two_processes_give_the_samples_of_one(tmp_path):
    """lm-eval pads uneven ranks with the last request again, and where ranks are mistaken documents count twice."""
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=one_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = json.loads(json.dumps(score(tokenizer, False)))
    assert first == second
    assert first["greedy"] == alone["greedy"] and first["drawn"] == alone["drawn"]
    assert first["texts"] == pytest.approx(alone["texts"], rel=1e-5)
    for mine, other in zip(first["pairs"], alone["pairs"], strict=True):
        assert mine == [pytest.approx(other[0], rel=1e-5), other[1]]


def tiny_tokenizer() -> Tokenizer:
    """Letters and bytes would not fit a vocabulary of 97; a tokenizers file of words and single letters does."""
    import tempfile

    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    letters = [chr(c) for c in range(32, 127) if chr(c) not in "{}~|`^"]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    library = Library(models.BPE(vocabulary, [], unk_token=" "))
    library.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    library.decoder = decoders.Fuse()
    with tempfile.TemporaryDirectory() as folder:
        library.save(f"{folder}/tokenizer.json")
        return Tokenizer.load(folder)


@given(weights=st.lists(st.integers(1, 50), max_size=40), n=st.integers(1, 5), seed=st.integers(0, 5))
def test_h23_every_request_belongs_to_one_process(weights, n, seed):
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed)).tolist()
    shares = share_out(order, weights, n)
    assert len(shares) == n and [i for share in shares for i in share] == order
    fair = sum(weights) / n
    assert all(sum(weights[i] for i in share) <= fair + 2 * max(weights, default=0) for share in shares)


def test_h23_an_error_in_one_process_reaches_all(monkeypatch):
    """Nobody waits for a process that has given up."""
    from hybridlm.eval.forward.processes import in_parallel
    from hybridlm.eval.forward.scoring import NaNScore
    from hybridlm.lm.train.faults import Failure

    def gather(into, mine):
        into[:] = [mine, Failure.of(NaNScore(3))]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(NaNScore, match=r"^the model gives NaN"):
        in_parallel(range(4), [1] * 4, lambda chosen: dict.fromkeys(chosen, 0))
    with pytest.raises(KeyError):
        in_parallel(range(4), [1] * 4, lambda chosen: {}[chosen[0]])
