import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridlm.lm.data.corpus import documents
from hybridlm.lm.data.document import Document
from hybridlm.lm.parts.errors import DataError, UserError
from hybridlm.lm.recipe.data import Select, SourceConfig

ROWS = [{"id": f"d{i}", "text": f"text {i}", "year": 2000 + i} for i in range(10)]


def read(**options) -> list[Document]:
    return list(documents(SourceConfig(name="made", **options), "/nowhere"))


def ids(**options) -> list[str]:
    return [d.id.removeprefix("made/") for d in read(**options)]


def test_json_lines(jsonl):
    found = read(format="json", path=str(jsonl(ROWS)))
    assert [(d.id, d.text, d.meta["year"]) for d in found] == [(f"made/d{i}", f"text {i}", 2000 + i) for i in range(10)]


def test_rows_without_id_are_numbered_and_other_text_fields_work(jsonl):
    path = jsonl([{"body": "a"}, {"body": "  "}, {"body": "c"}])
    assert ids(format="json", path=str(path), text_field="body") == ["000000000", "000000002"]


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert len(read(format="parquet", path=str(tmp_path / "*.parquet"))) == 10


def test_text_files_and_folders(tmp_path):
    (tmp_path / "books" / "sub").mkdir(parents=True)
    (tmp_path / "books" / "b.txt").write_text("Bé\n\nb")
    (tmp_path / "books" / "sub" / "a.txt").write_text("A")
    (tmp_path / "books" / "note.md").write_text("no")
    assert ids(format="folder", path=str(tmp_path / "books")) == ["b.txt", "sub/a.txt"]
    (one,) = read(format="text", path=str(tmp_path / "books" / "b.txt"))
    assert one.text == "Bé\n\nb"


def test_a_hub_set_is_streamed(monkeypatch):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append((args, options))
        if "columns" in options:
            raise ValueError("BuilderConfig JsonConfig doesn't have a 'columns' key.")
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert ids(format="hub", path="owner/set:small", split="validation", max_bytes=13) == ["d0", "d1", "d2"]
    assert all(one[0] == ("owner/set", "small") for one in asked)
    assert all(one[1].items() >= {"split": "validation", "streaming": True}.items() for one in asked)


def test_columns_of_a_hub_set_that_nobody_asked_for_may_disagree(tmp_path):
    """A folder is read as a set on the hub is: `u` is null in one file and text in the other, `more` is in one."""
    files = [
        pa.table({"text": ["a", "b"], "year": [1, 2], "u": pa.array([None, None], pa.null())}),
        pa.table({"text": ["c"], "year": [3], "u": ["x"], "more": [1]}),
    ]
    for i, table in enumerate(files):
        pq.write_table(table, tmp_path / f"train-{i:05d}.parquet")
    found = read(format="hub", path=str(tmp_path), select={"field": "year", "min": 2})
    assert [(one.text, one.meta) for one in found] == [("b", {"year": 2}), ("c", {"year": 3})]
    with pytest.raises(UserError, match=r"text_field='body' is in no row; columns of the first: text, u, year"):
        read(format="hub", path=str(tmp_path), text_field="body", max_bytes=1)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import datasets

    def load(*args, **options):
        raise OSError("no route\n to host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match=r"^source 'made': cannot read owner/set: no route to host; check the network, or give "
    ):
        read(format="hub", path="owner/set")


def test_selects(jsonl):
    path = str(jsonl(ROWS))

    def chosen(**select):
        return ids(format="json", path=path, select=Select(**select))

    assert chosen(field="year", min=2007) == ["d7", "d8", "d9"]
    assert chosen(field="year", max=2001) == ["d0", "d1"]
    assert chosen(field="year", among=[2003, 2005]) == ["d3", "d5"]
    assert chosen(field="id", exclude=[f"made/d{i}" for i in range(1, 10)]) == ["d0"]
    parts = [chosen(hash=(lo / 4, (lo + 1) / 4)) for lo in range(4)]
    assert sorted(id for part in parts for id in part) == [f"d{i}" for i in range(10)]


def test_hash_positions_are_uniform_and_agree_with_a_percent_split():
    found = [Document(f"x/{i}", "") for i in range(4000)]
    positions = [d.position for d in found]
    assert all(0 <= p < 1 for p in positions)
    for bound in (0.02, 0.1, 0.5, 0.973):
        assert abs(sum(p < bound for p in positions) / 4000 - bound) < 0.025
    import hashlib

    percent = [int(hashlib.sha1(d.id.encode()).hexdigest(), 16) % 100 < 2 for d in found]
    assert percent == [p < 0.02 for p in positions]


def test_errors(jsonl, tmp_path):
    path = str(jsonl(ROWS))

    def message(**options) -> str:
        with pytest.raises(UserError) as error:
            read(**options)
        return str(error.value)

    year = Select(field="year", min=3000)
    assert message(format="json", path=path, select=year) == (
        "source 'made': empty corpus: no document has text and passes its select"
    )
    assert message(format="json", path=path, select=Select(field="yaer", min=1)) == (
        "source 'made': select.field='yaer' is in no row; columns of the first: id, text, year"
    )
    assert message(format="json", path=path, select=Select(field="year", min="old")) == (
        "source 'made': select compares year=2000 of made/d0 with 'old'; write the bound in the field's type"
    )
    assert message(format="json", path=path, text_field="body") == (
        "source 'made': text_field='body' is in no row; columns of the first: id, text, year"
    )
    assert message(format="json", path="/no/such.jsonl") == (
        "source 'made': path=/no/such.jsonl: no such file; correct the path"
    )
    assert message(format="folder", path=str(tmp_path / "none")) == (
        f"source 'made': path={tmp_path}/none: no such .txt file below; correct the path"
    )
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    assert message(format="text", path=str(tmp_path / "latin.txt")) == (
        f"source 'made': {tmp_path}/latin.txt is not UTF-8 (invalid continuation byte); convert it"
    )
    (tmp_path / "bad.jsonl").write_text("{not json")
    assert message(format="json", path=str(tmp_path / "bad.jsonl")) == (
        f"source 'made': {tmp_path}/bad.jsonl, line 1: not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)); give one JSON object a line, or an array of them"
    )
    assert message(format="json", path=str(tmp_path)) == (
        f"source 'made': path={tmp_path}: a folder; name its files, e.g. {tmp_path}/*.json"
    )
