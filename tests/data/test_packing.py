import json
import os

import numpy as np
import pytest

from hybridlm.lm.data import packing
from hybridlm.lm.data.packed import token_dtype
from hybridlm.lm.data.packing import PackedDataset, pack, write_shard
from hybridlm.lm.parts.errors import DataError

from .conftest import make_documents


class Counting:
    """A tokenizer that counts the texts it is given, and can die."""

    def __init__(self, tokenizer, dies: bool = False):
        self.inner, self.dies, self.texts = tokenizer, dies, 0
        self.bos_id, self.eos_id, self.vocab_size = tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size
        self.fingerprint = tokenizer.fingerprint

    def encode_documents(self, texts):
        if self.dies:
            os._exit(1)
        self.texts += len(texts)
        return self.inner.encode_documents(texts)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "shard_bytes", lambda index: 1500)


def expected_tokens(tokenizer, documents) -> list[int]:
    return [t for d in documents for t in (tokenizer.bos_id, *tokenizer.encode(d.text), tokenizer.eos_id)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pack_holds_exactly_the_documents(tmp_path, tokenizer, workers):
    documents = make_documents(40)
    told = []
    pack(documents, tokenizer, tmp_path / "p", fingerprint="f", workers=workers, advance=told.append)
    packed = PackedDataset(tmp_path / "p")
    tokens = expected_tokens(tokenizer, documents)
    assert packed.tokens(0, packed.n_tokens).tolist() == tokens
    assert packed.n_documents == 40 and packed.n_bytes == sum(told) == sum(len(d.text.encode()) for d in documents)
    assert packed.doc_bytes.tolist() == [len(d.text.encode()) for d in documents]
    assert packed.tokens(0, packed.n_tokens)[packed.doc_offsets[:-1]].tolist() == [tokenizer.bos_id] * 40
    assert packed.doc_offsets[-1] == packed.n_tokens
    shards = sorted((tmp_path / "p").glob("shard-*.bin"))
    assert len(shards) > 4 and not list((tmp_path / "p").glob("shard-*.npy"))
    assert sum(shard.stat().st_size for shard in shards) == 2 * len(tokens)


def test_ranges_across_shards(tmp_path, tokenizer):
    documents = make_documents(40)
    pack(documents, tokenizer, tmp_path / "p", fingerprint="f")
    packed, tokens = PackedDataset(tmp_path / "p"), expected_tokens(tokenizer, documents)
    for start in range(0, len(tokens), 97):
        for stop in (start, start + 1, min(start + 1200, len(tokens))):
            assert packed.tokens(start, stop).tolist() == tokens[start:stop]
    starts = packed.doc_offsets[:-1]
    assert packed.doc_starts(5, 700).tolist() == [s for s in starts if 5 <= s < 700]
    with pytest.raises(IndexError):
        packed.tokens(0, packed.n_tokens + 1)


def test_complete_packs_are_left_alone_and_others_replaced(tmp_path, tokenizer):
    counting = Counting(tokenizer)
    pack(make_documents(40), counting, tmp_path, fingerprint="one")
    pack(make_documents(40), counting, tmp_path, fingerprint="one")
    assert counting.texts == 40
    pack(make_documents(5, seed=1), counting, tmp_path, fingerprint="two")
    packed = PackedDataset(tmp_path)
    assert (packed.fingerprint, packed.n_documents) == ("two", 5)
    assert packed.tokens(0, packed.n_tokens).tolist() == expected_tokens(tokenizer, make_documents(5, seed=1))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_packing_keeps_finished_shards(tmp_path, tokenizer, workers):
    def interrupted():
        yield from make_documents(25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(interrupted(), tokenizer, tmp_path / "p", fingerprint="f", workers=workers)
    done = len(list((tmp_path / "p").glob("shard-*.npy")))
    assert done > 0
    with pytest.raises(DataError) as error:
        PackedDataset(tmp_path / "p")
    assert str(error.value) == f"pack {tmp_path}/p: not complete (no index.json); run `hybridlm prepare` again"
    counting = Counting(tokenizer)
    pack(make_documents(40), counting, tmp_path / "p", fingerprint="f")
    assert 0 < counting.texts < 40
    packed = PackedDataset(tmp_path / "p")
    assert packed.tokens(0, packed.n_tokens).tolist() == expected_tokens(tokenizer, make_documents(40))


def test_a_half_written_shard_is_done_again(tmp_path, tokenizer):
    texts = [d.text for d in make_documents(10)]
    path = tmp_path / "shard-00000.bin"
    write_shard(tokenizer, texts, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    counting = Counting(tokenizer)
    write_shard(counting, texts, path)
    assert path.read_bytes() == whole and counting.texts == 10
    write_shard(counting, texts, path)
    assert counting.texts == 10


def test_a_killed_worker_is_explained(tmp_path, tokenizer):
    with pytest.raises(DataError) as error:
        pack(make_documents(10), Counting(tokenizer, dies=True), tmp_path, fingerprint="f", workers=2)
    assert str(error.value) == (
        "prepare: a worker process was killed, most often for lack of memory; lower data.workers and run it again, "
        "finished shards are kept"
    )


def test_damaged_packs(tmp_path, tokenizer):
    pack(make_documents(40), tokenizer, tmp_path, fingerprint="f")
    fix = f"delete {tmp_path} and run `hybridlm prepare` again"
    shard = tmp_path / "shard-00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-6])
    with pytest.raises(DataError) as error:
        PackedDataset(tmp_path)
    assert str(error.value) == (
        f"pack {tmp_path}: shard-00001.bin has {len(whole) - 6} bytes instead of {len(whole)}; {fix}"
    )
    shard.unlink()
    with pytest.raises(DataError) as error:
        PackedDataset(tmp_path)
    assert str(error.value) == f"pack {tmp_path}: shard-00001.bin is missing; {fix}"
    shard.write_bytes(whole)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "vocab_size": 70000}))
    with pytest.raises(DataError) as error:
        PackedDataset(tmp_path)
    assert str(error.value) == f"pack {tmp_path}: 70000 tokens do not fit its uint16 shards; {fix}"


def test_token_types():
    assert token_dtype(65536) == np.uint16 and token_dtype(65537) == np.uint32


def test_ids_beyond_the_vocabulary_are_refused(tmp_path, tokenizer):
    lying = Counting(tokenizer)
    lying.vocab_size = 10
    with pytest.raises(DataError, match=r"^tokenizer: gave id \d+, but declares 10 tokens; replace its damaged file$"):
        write_shard(lying, ["whale ship"], tmp_path / "shard-00000.bin")
