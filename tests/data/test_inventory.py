"""What a finished pack needs, and what is read again: corpora may be large, moved, replaced, or not there at all."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from hybridlm.lm.data import inventory, packing, preparation
from hybridlm.lm.data import prepare as module
from hybridlm.lm.data.corpus import documents
from hybridlm.lm.data.prepare import prepare
from hybridlm.lm.parts.errors import ConfigError, DataError
from hybridlm.lm.recipe.recipe import Recipe

from .conftest import make_texts


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of 40 texts."""
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    for i, text in enumerate(make_texts(40)):
        (tmp_path / "corpus" / ("sub" if i % 2 else ".") / f"{i:02d}.txt").write_text(text)
    return tmp_path / "corpus"


@pytest.fixture
def recipe(tmp_path, corpus):
    def make(**data) -> Recipe:
        source = {"name": "made", "format": "folder", "path": str(corpus)}
        train, held = ({**source, "select": {"hash": hash}} for hash in ([0.3, 1], [0, 0.3]))
        default = {"train": [train], "valid": {"v": [held]}, "cache": str(tmp_path / "cache"), "workers": 1}
        model = {"pattern": ["attention"], "vocab_size": 300}
        out = {"steps": 1, "out": str(tmp_path / "{name}")}
        return Recipe.parse({"name": "r", "model": model, "train": out, "data": {**default, **data}})

    return make


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that are read for their hash, as it happens."""
    names, sha256_of = [], inventory.sha256_of

    def counting(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(inventory, "sha256_of", counting)
    return names


@pytest.fixture
def finished(monkeypatch):
    """Call it where nothing is to be made: from then on a lock or a write is a failure."""

    def forbid() -> None:
        def never(*args, **options):
            raise AssertionError("a lock, a folder or a record was made")

        for name in ("hold", "_made"):
            monkeypatch.setattr(module, name, never)
        monkeypatch.setattr(inventory, "append_records", never)

    return forbid


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


def test_every_file_is_hashed_once_and_only_what_has_changed_again(recipe, corpus, hashed):
    before = prepare(recipe(), quiet=True)
    assert sorted(hashed) == [f"{i:02d}.txt" for i in range(40)]  # though tokenizer and two packs depend on them
    for text_field in ("text", "other"):  # another key, the same files
        prepare(recipe(train=[{**recipe().data.train[0].model_dump(), "text_field": text_field}]), quiet=True)
    assert len(hashed) == 40
    os.utime(corpus / "02.txt")
    assert prepare(recipe(), quiet=True).train[0].folder == before.train[0].folder
    assert hashed[40:] == ["02.txt"]
    text = (corpus / "04.txt").read_text()
    (corpus / "04.txt").write_text("X" + text[1:])
    os.utime(corpus / "04.txt", ns=(1, 1))
    after = prepare(recipe(), quiet=True)
    assert hashed[41:] == ["04.txt"] and after.train[0].fingerprint != before.train[0].fingerprint
    (corpus / "04.txt").write_text(text)
    os.utime(corpus / "04.txt", ns=(1, 1))  # the same size and time as the file that was just read
    assert prepare(recipe(), quiet=True).train[0].fingerprint == before.train[0].fingerprint


def test_a_finished_pack_is_opened_without_a_lock_or_a_write(recipe, tmp_path, hashed, finished):
    first = prepare(recipe(), quiet=True)
    before = state(tmp_path)
    finished()
    again = prepare(recipe(), quiet=True)
    assert len(hashed) == 40 and state(tmp_path) == before
    assert [d.fingerprint for d in again.train] == [d.fingerprint for d in first.train]


def test_texts_that_were_moved_away_are_not_needed(recipe, corpus, tmp_path, finished, capsys):
    first = prepare(recipe(), quiet=True)
    shutil.rmtree(corpus)
    finished()
    again = prepare(recipe())
    assert again.train[0].folder == first.train[0].folder and again.valid["v"][0].folder == first.valid["v"][0].folder
    said = f"source 'made': no file at {corpus} any more; what was made of it before is used"
    assert capsys.readouterr().err.splitlines() == [said]
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere")
    moved = prepare(recipe(cache=str(tmp_path / "elsewhere")), quiet=True)
    assert moved.train[0].n_tokens == first.train[0].n_tokens


def test_a_tokenizer_file_that_was_moved_away_is_not_needed(recipe, tokenizer, tmp_path, finished, capsys):
    given = tokenizer.save(tmp_path / "mine")
    with_file = {"tokenizer": {"kind": "file", "path": str(given)}}
    large = recipe(**with_file).model_copy(update={"model": recipe().model.model_copy(update={"vocab_size": 400})})
    first = prepare(large, quiet=True)
    shutil.rmtree(tmp_path / "mine")
    finished()
    again = prepare(large)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint == tokenizer.fingerprint
    said = f"tokenizer: no file at {given} any more; what was made of it before is used"
    assert capsys.readouterr().err.splitlines() == [said]


def test_without_texts_nothing_else_can_be_made(recipe, corpus):
    prepare(recipe(), quiet=True)
    shutil.rmtree(corpus)
    gone = rf"^source 'made': path={corpus}: no such \.txt file below; correct the path$"
    with pytest.raises(ConfigError, match=gone):
        prepare(recipe(valid={"v": [{"name": "made", "format": "folder", "path": str(corpus)}]}), quiet=True)
    with pytest.raises(ConfigError, match=gone.replace("corpus:", "corpus/sub:")):
        source = {"name": "made", "format": "folder", "path": str(corpus / "sub")}
        prepare(recipe(train=[source], valid={}), quiet=True)


def test_a_corpus_of_which_some_is_left_is_another_corpus(recipe, corpus):
    first = prepare(recipe(), quiet=True)
    shutil.rmtree(corpus / "sub")
    second = prepare(recipe(), quiet=True)
    assert second.train[0].folder != first.train[0].folder
    assert second.train[0].n_documents + second.valid["v"][0].n_documents == 20
    shutil.rmtree(corpus)  # and it is the last one that is remembered
    assert prepare(recipe(), quiet=True).train[0].folder == second.train[0].folder


def test_a_renamed_folder_is_another_corpus(recipe, corpus):
    """Its documents have other ids, which selections may look at."""
    select = {"field": "file", "among": ["sub/01.txt", "sub/03.txt"]}
    source = {"name": "made", "format": "folder", "path": str(corpus)}
    two = recipe(train=[source], valid={"v": [{**source, "select": select}]})
    assert prepare(two, quiet=True).valid["v"][0].n_documents == 2
    (corpus / "sub").rename(corpus / "sub2")
    with pytest.raises(ConfigError, match="empty corpus"):
        prepare(two, quiet=True)


def test_a_cache_that_cannot_be_written_to_serves_what_is_finished(recipe, tmp_path, corpus, monkeypatch, hashed):
    first = prepare(recipe(), quiet=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = state(tmp_path / "cache")
    os.utime(corpus / "00.txt")  # has to be read again, and cannot be remembered
    for _ in range(2):
        assert prepare(recipe(), quiet=True).train[0].folder == first.train[0].folder
    assert hashed[40:] == ["00.txt"] * 2 and state(tmp_path / "cache") == before
    (corpus / "00.txt").write_text("other words")
    with pytest.raises(DataError) as error:
        prepare(recipe(), quiet=True)
    assert str(error.value) == (
        f"data.cache: {tmp_path}/cache/prepared: it cannot be written to; make room, or run `hybridlm prepare` where "
        "the cache can be written to"
    )
    assert state(tmp_path / "cache") == before


def test_a_full_disk_is_one_line(recipe, monkeypatch, tmp_path):
    def full(*args, **options):
        raise OSError(28, "No space left on device", "shard-00000.bin")

    monkeypatch.setattr(packing, "write_atomically", full)
    with pytest.raises(DataError, match=r"^data\.cache: shard-00000\.bin: No space left on device; make room, or run"):
        prepare(recipe(), quiet=True)


@pytest.mark.parametrize("reading", [1, 2, 3], ids=["tokenizer", "training pack", "validation pack"])
def test_a_corpus_that_changes_while_it_is_read_leaves_no_pack_of_it(reading, recipe, corpus, monkeypatch, tmp_path):
    readings = []

    def changing(*args, **options):
        readings.append(None)
        for document in documents(*args, **options):
            if len(readings) == reading:
                (corpus / "03.txt").write_text("other words")
            yield document

    monkeypatch.setattr(packing, "shard_bytes", lambda index: 300)
    monkeypatch.setattr(preparation, "documents", changing)
    with pytest.raises(DataError) as error:
        prepare(recipe(), quiet=True)
    assert str(error.value) == (
        "source 'made' changed while it was read; run `hybridlm prepare` again when it is complete"
    )
    assert len(list((tmp_path / "cache" / "prepared").glob("made-*"))) == max(0, reading - 2)
    monkeypatch.setattr(preparation, "documents", documents)
    found = prepare(recipe(), quiet=True)
    texts = {found.tokenizer.decode(ids) for d in (*found.train, *found.valid["v"]) for ids in documents_of(d)}
    assert texts == {path.read_text() for path in corpus.rglob("*.txt")} and "other words" in texts


def documents_of(pack) -> list[list[int]]:
    """The documents of a pack, without bos and eos."""
    bounds = zip(pack.doc_offsets[:-1], pack.doc_offsets[1:], strict=True)
    return [pack.tokens(start + 1, stop - 1).tolist() for start, stop in bounds]


def test_a_file_that_is_written_to_while_it_is_hashed_is_named(recipe, corpus, monkeypatch):
    def growing(path: Path) -> str:
        with path.open("a") as file:
            file.write("more")
        return "0" * 64

    monkeypatch.setattr(inventory, "sha256_of", growing)
    with pytest.raises(DataError) as error:
        prepare(recipe(), quiet=True)
    assert str(error.value) == (
        f"source 'made': {corpus}/00.txt changed while it was read; run `hybridlm prepare` again when it is complete"
    )


def test_a_file_that_was_just_written_is_not_taken_for_known_too_early(tmp_path):
    """A second write within one tick of the file system's clock would leave the same times."""
    path = tmp_path / "a"
    path.write_text("x")
    first = inventory._settled(path)
    path.write_text("y")
    assert inventory._stat(path) != first
    os.utime(path, (time.time() // 1 - 100,) * 2)
    started = time.perf_counter()
    inventory._settled(path)
    assert time.perf_counter() - started < 0.04  # an old file, whatever its clock


def test_what_is_found_is_said_once(recipe, corpus, capsys):
    (corpus / "empty.txt").write_text("")
    prepare(recipe())
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("source")]
    assert [re.sub(r"\d+ documents taken", "N documents taken", line) for line in lines] == [
        "source 'made': 41 files, N documents taken; skipped 1 documents without text"
    ] * 2
    assert sum(int(re.findall(r"(\d+) documents taken", line)[0]) for line in lines) == 40
    prepare(recipe())
    assert capsys.readouterr().err == ""
