import multiprocessing
import random
import re
import socket
import time
from pathlib import Path

import psutil
import pytest

from hybridlm.lm.data import preparation, waiting
from hybridlm.lm.data.packing import pack
from hybridlm.lm.data.preparation import mixture_weights
from hybridlm.lm.data.prepare import prepare
from hybridlm.lm.data.sample import sample, spread
from hybridlm.lm.data.waiting import hold
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.data import SourceConfig
from hybridlm.lm.recipe.recipe import Recipe
from hybridlm.tests.hf.tokenizer_kinds import byte_level

from .conftest import make_documents, make_texts


@pytest.fixture
def recipe(tmp_path, jsonl):
    """A function that makes a recipe on a made-up corpus; keyword arguments go into its data section."""
    path = str(jsonl([{"id": i, "text": text} for i, text in enumerate(make_texts(150))]))
    source = {"name": "made", "format": "json", "path": path}

    def make(vocab_size: int = 300, **data) -> Recipe:
        default = {
            "train": [{**source, "select": {"hash": [0.2, 1.0]}}],
            "valid": {"held": [{**source, "select": {"hash": [0.0, 0.2]}}]},
            "cache": str(tmp_path / "cache"),
            "workers": 1,
        }
        model = {"pattern": ["attention"], "vocab_size": vocab_size}
        return Recipe.parse({"name": "r", "model": model, "train": {"steps": 1}, "data": {**default, **data}})

    return make


def test_prepare_and_prepare_again(recipe, tmp_path):
    first = prepare(recipe(), quiet=True)
    assert first.folder == tmp_path / "cache" / "prepared"
    assert first.tokenizer.vocab_size == 300 and first.weights == [1.0]
    assert first.train[0].n_documents + first.valid["held"][0].n_documents == 150
    files = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    second = prepare(recipe(), quiet=True)
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert files == {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_what_changes_the_data_makes_new_packs(recipe, jsonl):
    before = prepare(recipe(), quiet=True)
    other_vocab = prepare(recipe(vocab_size=310), quiet=True)
    assert other_vocab.train[0].folder != before.train[0].folder
    source = recipe().data.train[0].model_copy(update={"weight": 0.5})
    reweighted = prepare(recipe(train=[source.model_dump()]), quiet=True)
    assert reweighted.train[0].folder == before.train[0].folder
    jsonl([{"id": i, "text": text} for i, text in enumerate(make_texts(149))])
    assert prepare(recipe(), quiet=True).train[0].folder != before.train[0].folder


def test_a_tokenizer_file_must_fit_the_model(recipe, tmp_path, tokenizer):
    path = tokenizer.save(tmp_path / "mine")
    assert prepare(recipe(400, tokenizer={"kind": "file", "path": str(path)}), quiet=True).train
    with pytest.raises(ConfigError) as error:
        prepare(recipe(300, tokenizer={"kind": "file", "path": str(path)}), quiet=True)
    assert str(error.value) == f"model.vocab_size=300: {path} has 320 tokens; set model.vocab_size=320 or more"


def test_words_that_spell_a_special_token_are_text_in_training_data_unless_the_recipe_says_otherwise(
    recipe, tmp_path, jsonl
):
    byte_level(("<|endoftext|>",)).save(str(tmp_path / "tokenizer.json"))
    jsonl([{"id": i, "text": f"{text} <|endoftext|> {text}"} for i, text in enumerate(make_texts(20))])
    asked = {"kind": "file", "path": str(tmp_path / "tokenizer.json")}
    source = {**recipe().data.train[0].model_dump(), "select": {}}
    ends = {}
    for how in ("text", "control"):
        packed = prepare(recipe(300, train=[source], valid={}, tokenizer=asked | {"special_text": how}), quiet=True)
        tokens = packed.train[0].tokens(0, packed.train[0].n_tokens)
        ends[how] = int((tokens == 0).sum()) / packed.train[0].n_documents
    assert ends == {"text": 2, "control": 3}


def sources(*weights) -> list[SourceConfig]:
    return [SourceConfig(name="sotu", weight=weight) for weight in weights]


def test_mixture_weights():
    assert mixture_weights(sources(None, None), [300, 100]) == [0.75, 0.25]
    assert mixture_weights(sources(1, 3), [300, 100]) == [0.25, 0.75]
    assert mixture_weights(sources(0.5, None, None), [7, 100, 300]) == pytest.approx([0.5, 0.125, 0.375])
    with pytest.raises(ConfigError) as error:
        mixture_weights(sources(1.5, None), [1, 1])
    assert str(error.value) == (
        "data.train: the weights given sum to 1.5 and leave nothing for the sources without one; "
        "give weights below 1 in sum, or one to every source"
    )


def test_tokenizer_text_is_spread_over_sources():
    samples = [["a" * 10] * 10, ["b" * 1000], ["é" * 7] * 100]

    def sizes(max_bytes: int) -> list[int]:
        text = "".join(spread(samples, max_bytes))
        return [text.count("a"), text.count("b"), 2 * text.count("é")]

    assert sizes(10_000) == [100, 1000, 1400]
    assert sizes(900) == [100, 400, 400]
    assert sizes(63) == [21, 21, 20]  # a character is never cut


def test_the_sample_is_random_and_bounded(recipe):
    from hybridlm.lm.data.document import Document

    found = [Document(f"d/{i}", "x" * 99 + "\n") for i in range(100)]
    kept = sample(iter(found), 1000, lambda n: None)
    shuffled = sample(iter(random.Random(1).sample(found, 100)), 1000, lambda n: None)
    assert kept == shuffled and len(kept) == 10
    assert len(sample(iter(found), 10**6, lambda n: None)) == 100


def _prepare_and_log(recipe, log: Path) -> None:
    train_tokenizer = preparation.train_tokenizer

    def logged(*args):
        with log.open("a") as file:
            file.write("trained\n")
        return train_tokenizer(*args)

    preparation.train_tokenizer = logged
    prepare(recipe, quiet=True)


def test_processes_that_start_at_once_do_the_work_once(recipe, tmp_path):
    fork, log = multiprocessing.get_context("fork"), tmp_path / "log"
    ranks = [fork.Process(target=_prepare_and_log, args=(recipe(), log)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert log.read_text() == "trained\n"


class Stuck:
    """A tokenizer that never finishes."""

    bos_id, eos_id, vocab_size = 1, 2, 300

    def encode_documents(self, texts):
        time.sleep(600)


def _pack_forever(folder: Path) -> None:
    with hold(folder / ".lock", print):
        pack(make_documents(1), Stuck(), folder / "p", fingerprint="f", workers=2)


def test_workers_of_a_killed_process_end_and_free_its_lock(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=_pack_forever, args=(tmp_path,))
    killed.start()
    deadline = time.monotonic() + 20
    while len(psutil.Process(killed.pid).children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    workers = psutil.Process(killed.pid).children()
    killed.kill()
    killed.join()
    with hold(tmp_path / ".lock", print):
        assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=10)[1]


def _hold(path: Path, held, done) -> None:
    with hold(path, print):
        held.set()
        done.wait(60)


def test_who_waits_says_for_whom_and_never_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS", 0.05)
    fork = multiprocessing.get_context("fork")
    held, done, path = fork.Event(), fork.Event(), tmp_path / ".lock"
    holder = fork.Process(target=_hold, args=(path, held, done))
    holder.start()
    assert held.wait(30)
    said = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 5:
            done.set()

    with hold(path, say):
        assert len(said) >= 5
    words = re.fullmatch(r"waiting for process (\d+) on (\S+), at work since [\d: -]+, which holds (.+)", said[0])
    assert words and words.groups() == (str(holder.pid), socket.gethostname(), str(path))
    holder.join(30)


def test_a_dead_holder_frees_the_lock(tmp_path):
    fork = multiprocessing.get_context("fork")
    held, path = fork.Event(), tmp_path / ".lock"
    holder = fork.Process(target=_hold, args=(path, held, fork.Event()))
    holder.start()
    assert held.wait(30)
    holder.kill()
    holder.join()
    with hold(path, print):
        pass
    assert not (tmp_path / ".lock-holder").exists()
