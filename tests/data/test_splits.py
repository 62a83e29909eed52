"""Training and validation documents are disjoint where a recipe says so, and where they are not it is said."""

import hashlib
import json

import numpy as np
import pytest

from hybridlm.lm.data.corpus import documents
from hybridlm.lm.data.document import Document
from hybridlm.lm.data.inventory import Inventory
from hybridlm.lm.data.packed import PackedDataset, mixture_fingerprint
from hybridlm.lm.data.preparation import Preparation
from hybridlm.lm.data.prepare import prepare
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.data import DataConfig, SourceConfig
from hybridlm.lm.recipe.recipe import Recipe

from .conftest import make_texts


@pytest.fixture
def recipe(tmp_path):
    def make(train: list[dict], valid: dict[str, list[dict]], **more) -> Recipe:
        data = {"train": train, "valid": valid, "cache": str(tmp_path / "cache"), "workers": 1}
        model = {"pattern": ["attention"], "vocab_size": 300, "context": 16}
        train_section = {"steps": 1, "out": str(tmp_path / "{name}")}
        return Recipe.parse({"name": "r", "model": model, "train": train_section, "data": data, **more})

    return make


def taken(**options) -> list[str]:
    return [document.text for document in documents(SourceConfig(**options), "/nowhere")]


def test_complementary_intervals_are_disjoint_whatever_sources_and_files_are_called(tmp_path, jsonl):
    """Other names, another pattern, another order, ids in one copy alone, another format: equal texts, equal side."""
    rows = [{"text": text} for text in make_texts(300)]
    one = jsonl(rows, "one.jsonl")
    jsonl(rows[::-1], "copies-a.jsonl")
    jsonl([{"id": f"n{i}", **row} for i, row in enumerate(rows)], "copies-b.jsonl")
    (tmp_path / "files").mkdir()
    for i, row in enumerate(rows):
        (tmp_path / "files" / f"{i}.txt").write_text(row["text"])
    held = {"format": "json", "path": str(one), "select": {"hash": [0, 0.1]}}
    valid = set(taken(name="held", **held))
    assert 10 < len(valid) < 60
    everything = {row["text"] for row in rows}
    others = [
        {"name": "held", "format": "json", "path": str(one)},
        {"name": "prose", "format": "json", "path": str(one)},
        {"name": "b", "format": "json", "path": str(tmp_path / "copies-*.jsonl")},
        {"name": "c", "format": "folder", "path": str(tmp_path / "files")},
        {"name": "d", "format": "text", "path": str(tmp_path / "files" / "*.txt")},
    ]
    for other in others:
        train = set(taken(**other, select={"hash": [0.1, 1.0]}))
        assert train == everything - valid, other


def test_duplicates_within_a_file_fall_on_one_side(jsonl):
    path = str(jsonl([{"id": i, "text": f"text {i % 50}"} for i in range(500)]))
    parts = [taken(name="a", format="json", path=path, select={"hash": [k / 4, (k + 1) / 4]}) for k in range(4)]
    assert sum(map(len, parts)) == 500 and sum(len(set(part)) for part in parts) == 50
    assert all(part.count(text) == 10 for part in parts for text in part)


def test_positions_of_texts_are_uniform_and_below_one(jsonl):
    path = str(jsonl([{"text": f"text {i}"} for i in range(4000)]))
    for bound in (0.02, 0.1, 0.5, 0.973):
        share = len(taken(name="a", format="json", path=path, select={"hash": [0, bound]})) / 4000
        assert abs(share - bound) < 0.025


def test_documents_in_both_are_counted_by_set_and_source(recipe, jsonl, capsys):
    texts = make_texts(60)
    a = str(jsonl([{"text": text} for text in texts[:40]], "a.jsonl"))
    b = str(jsonl([{"text": text} for text in texts[30:50]], "b.jsonl"))
    c = str(jsonl([{"text": text} for text in texts[50:]], "c.jsonl"))
    train = [{"name": "a", "format": "json", "path": a}, {"name": "b", "format": "json", "path": b}]
    again = {"name": "again", "format": "json", "path": a, "select": {"hash": [0, 0.5]}}
    valid = {"clean": [{"name": "c", "format": "json", "path": c}], "dirty": [again]}
    n = len(taken(**again))
    in_b = len(set(taken(**again)) & set(texts[30:50]))
    assert 0 < in_b < n < 40
    said = [
        f"warning: validation set 'dirty': {count} of the {n} documents of source 'again' are also in training source "
        f"{name!r}; their loss is too low: select others for one of the two"
        for count, name in ((n, "a"), (in_b, "b"))
    ]
    for _ in range(2):  # when it is made, and when it is found
        prepare(recipe(train, valid))
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("warning")] == said
    prepare(recipe(train, {"clean": valid["clean"]}))
    assert "warning" not in capsys.readouterr().err


def test_one_process_of_a_launch_warns(recipe, jsonl, capsys, monkeypatch):
    source = {"name": "a", "format": "json", "path": str(jsonl([{"text": text} for text in make_texts(40)]))}
    monkeypatch.setenv("RANK", "1")
    prepare(recipe([source], {"v": [source]}))
    assert "warning" not in capsys.readouterr().err


def test_hashes_of_documents_are_kept_and_formed_for_packs_that_have_none(make_pack, tmp_path, monkeypatch):
    monkeypatch.setattr("hybridlm.lm.data.packing.shard_bytes", lambda index: 700)
    pack = make_pack(n=40)
    kept = pack.doc_hashes
    assert len(list(pack.folder.glob("shard-*.bin"))) > 4
    assert kept.dtype == np.uint64 and kept.shape == (40,) and len(np.unique(kept)) == 40
    (pack.folder / "hashes.npy").unlink()
    assert PackedDataset(pack.folder).doc_hashes.tolist() == kept.tolist()
    assert make_pack("other", n=45).doc_hashes[:40].tolist() == kept.tolist()


def message(**data) -> str:
    with pytest.raises(ConfigError) as error:
        DataConfig.parse(data)
    return str(error.value)


def test_lists_of_sources_that_cannot_be_meant_are_refused():
    a, b = {"name": "sotu"}, {"name": "sotu", "select": {"field": "year", "max": 2014}}
    assert message(train=[]) == "train: an empty list; give it a source or leave it out"
    assert message(train=[a], valid={"w": [b], "v": []}) == ("valid.v: an empty list; give it a source or leave it out")
    twice = "source 'sotu' is there twice; give it once, with the weight of both"
    assert message(train=[a, b, {**a, "weight": 2}]) == f"train: {twice}"
    assert message(train=[a], valid={"v": [b, b]}) == f"valid.v: {twice}"
    assert DataConfig.parse({"train": [a, b], "valid": {"v": [b], "w": [b]}})
    for weight in (0, -1):
        assert "greater than 0" in message(train=[{**a, "weight": weight}])


def test_a_set_that_selects_nothing_is_refused_before_training(recipe, jsonl):
    source = {"name": "a", "format": "json", "path": str(jsonl([{"text": text, "y": 1} for text in make_texts(40)]))}
    nothing = {**source, "select": {"field": "y", "min": 2}}
    with pytest.raises(ConfigError, match=r"^source 'a': empty corpus: no document has text and passes its select$"):
        prepare(recipe([source], {"v": [nothing]}), quiet=True)


def test_the_smallest_validation_set_has_a_target(recipe, jsonl):
    """Every document ends with eos, which is a target: a set that is not empty can be validated on."""
    source = {"name": "a", "format": "json", "path": str(jsonl([{"text": text} for text in make_texts(40)]))}
    tiny = {"name": "t", "format": "json", "path": str(jsonl([{"text": "x"}], "tiny.jsonl"))}
    [pack] = prepare(recipe([source], {"v": [tiny]}), quiet=True).valid["v"]
    assert pack.n_tokens - pack.n_documents >= 1 and pack.n_bytes == 1


def test_a_run_that_goes_on_keeps_the_split_that_it_was_trained_on(recipe, jsonl, tmp_path, monkeypatch, capsys):
    """Runs of before split by ids, names of sources included. A new run, and one of today, split by text."""
    source = {"name": "a", "format": "json", "path": str(jsonl([{"text": text} for text in make_texts(90)]))}
    split = recipe(
        [{**source, "select": {"hash": [0.3, 1.0]}}], {"v": [{**source, "name": "b", "select": {"hash": [0, 0.3]}}]}
    )
    checkpoint = tmp_path / "r" / "checkpoints" / "step-000004"

    def trained_on(fingerprint: str) -> None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        state = {"extra": {"loader": {"fingerprint": fingerprint}}}
        (checkpoint / "state.json").write_text(json.dumps(state))

    def fingerprint_of(prepared) -> str:
        return mixture_fingerprint(prepared.train, prepared.weights)

    new = prepare(split, quiet=True)
    with monkeypatch.context() as context:  # the form of before, as a run that begins would have it
        context.setattr("hybridlm.lm.data.prepare.Forms.finished", lambda self: None)
        context.setattr("hybridlm.lm.data.prepare.Forms.make", lambda self, task: self.old.make(task))
        old = prepare(split, quiet=True)
    assert new.train[0].folder != old.train[0].folder and new.valid["v"][0].folder != old.valid["v"][0].folder
    assert sum(pack.n_documents for pack in (new.train[0], new.valid["v"][0])) == 90
    for before in (old, new):
        trained_on(fingerprint_of(before))
        found = prepare(split)
        assert found.train[0].folder == before.train[0].folder
        assert found.valid["v"][0].folder == before.valid["v"][0].folder
        assert ("warning" in capsys.readouterr().err) == (before is old)  # the leak that splits by names had
    trained_on(fingerprint_of(old))
    moved = checkpoint.parents[1].rename(tmp_path / "moved")
    assert prepare(split, quiet=True).train[0].folder == new.train[0].folder
    assert prepare(split, quiet=True, run=moved).train[0].folder == old.train[0].folder
    trained_on("of other data")
    assert prepare(split, quiet=True).train[0].folder == new.train[0].folder  # and the loader refuses it


def test_registered_sources_are_split_by_ids_and_shipped_recipes_find_the_packs_that_they_had(tmp_path, monkeypatch):
    """Published figures stand for these splits."""
    made = [Document(f"sotu/{i}", f"text {i % 3}") for i in range(400)]
    monkeypatch.setattr("hybridlm.lm.data.corpus.read", lambda name, cache: iter(made))
    source = SourceConfig.parse({"name": "sotu", "select": {"hash": [0.02, 1.0]}})
    found = [document.id for document in documents(source, "/nowhere")]
    assert found == [d.id for d in made if int(hashlib.sha1(d.id.encode()).hexdigest(), 16) % 100 >= 2]
    for name in ("demo", "sotu-hour"):
        new, old = (Preparation(Recipe.load(name), Inventory(tmp_path), print, old=old) for old in (False, True))
        assert not new.differs(old)
    assert Preparation(Recipe.load("demo"), Inventory(tmp_path), print)._trained().name == "tokenizer-77a0b26b4235"
