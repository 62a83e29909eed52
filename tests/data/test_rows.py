"""Rows and texts out of files as they come: compressed, framed, half-written, with columns that nobody asked for."""

import bz2
import gzip
import json
import lzma
import math
import zipfile
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridlm.lm.data.corpus import Tally, documents
from hybridlm.lm.data.document import Document
from hybridlm.lm.parts.errors import UserError
from hybridlm.lm.recipe.data import SourceConfig


def read(path: Path, tally: Tally | None = None, **options) -> list[Document]:
    source = SourceConfig(**({"name": "made", "format": "json", "path": str(path)} | options))
    return list(documents(source, "/nowhere", tally))


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in read(path, **options)]


def message(path: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        read(path, **options)
    return str(error.value)


def test_columns_that_nobody_asked_for_may_hold_anything(tmp_path, jsonl):
    """A type that changes after thousands of rows and a column of the second file alone."""
    rows = [{"text": f"t{i}", "note": None if i < 3000 else "late", "n": i if i % 2 else str(i)} for i in range(3001)]
    jsonl(rows, "a.jsonl")
    jsonl([{"text": "b", "more": [1, {"x": 2}], "note": {"deep": 1}}], "b.jsonl")
    assert texts(tmp_path / "*.jsonl") == [*(f"t{i}" for i in range(3001)), "b"]
    pq.write_table(pa.Table.from_pylist([{"text": "c", "n": 1}]), tmp_path / "c.parquet")
    pq.write_table(pa.Table.from_pylist([{"n": "x", "more": b"\xff", "text": "d"}]), tmp_path / "d.parquet")
    found = read(tmp_path / "*.parquet", format="parquet")
    assert [(d.id, d.text, d.meta) for d in found] == [("made/000000000", "c", {}), ("made/000000001", "d", {})]


def test_an_id_that_is_missing_or_null_is_the_number_of_the_row(tmp_path, jsonl):
    path = jsonl([{"id": "a", "text": "1"}, {"id": None, "text": "2"}, {"text": "3"}, {"id": 0, "text": "4"}])
    expected = ["made/a", "made/000000001", "made/000000002", "made/0"]
    assert [document.id for document in read(path)] == expected
    pq.write_table(pa.table({"id": ["a", None], "text": ["1", "2"]}), tmp_path / "p.parquet")
    assert [document.id for document in read(tmp_path / "p.parquet", format="parquet")] == expected[:2]


def test_documents_without_text_are_skipped_and_counted(jsonl):
    tally = Tally()
    path = jsonl([{"text": None, "y": 1}, {"text": "a", "y": 1}, {"text": " \n"}, {"y": 2}, {"text": "b"}])
    select = {"field": "y", "max": 1}
    assert [d.text for d in read(path, tally, select=select)] == ["a"]
    assert tally == Tally(files=1, documents=1, without_text=3, without_field=1)
    assert tally.line(SourceConfig(name="made", format="json", path="p", select=select)) == (
        "source 'made': 1 files, 1 documents taken; skipped 3 documents without text; 1 documents have no y"
    )


@pytest.mark.parametrize("value", [7, ["a"], {"a": 1}, True])
def test_a_text_of_another_type_is_one_error(value, jsonl):
    assert message(jsonl([{"text": "a"}, {"text": value}])) == (
        f"source 'made': row 1 has {type(value).__name__} in text_field='text'; name the field of the text"
    )


def test_a_value_that_select_names_and_no_document_has_is_said(jsonl):
    """A title misspelt in `exclude` would be trained on without a word."""
    tally, path = Tally(), jsonl([{"text": "a", "title": "emma"}, {"text": "b", "title": "persuasion"}])
    select = {"field": "title", "exclude": ["persuassion", "emma"]}
    assert [d.text for d in read(path, tally, select=select)] == ["b"]
    assert tally.line(SourceConfig(name="made", format="json", path="p", select=select)).endswith(
        "1 documents taken; no document has title='persuassion', which select names"
    )
    assert [d.text for d in read(path, tally, select={"field": "title", "among": ["emma"]})] == ["a"]
    assert tally.unmet == []
    jsonl([{"text": "b", "title": "persuasion"}] * 2)
    read(path, tally, select=select, max_bytes=1)  # what is not read may have it
    assert tally.unmet == []


def test_a_misspelt_field_is_found_early_and_at_the_end_of_a_short_source(jsonl):
    endless = jsonl([{"text": "a", "year": 1}] * 1000 + [{"text": 3}])  # the last row would be another error
    select = {"field": "yaer", "max": 1}
    said = "source 'made': select.field='yaer' is in no row; columns of the first: text, year"
    assert message(endless, select=select) == said
    assert message(jsonl([{"text": "a", "year": 1}], "short.jsonl"), select=select) == said


def compress(raw: bytes, path: Path) -> Path:
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(raw[:9]) + gzip.compress(raw[9:]))
        case ".bz2":
            path.write_bytes(bz2.compress(raw))
        case ".xz":
            path.write_bytes(lzma.compress(raw))
        case ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("in/", b"")
                archive.writestr("in/rows", raw)
        case _:
            codec = {".zst": "zstd", ".lz4": "lz4"}[path.suffix]
            sink = pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, codec) as stream:
                stream.write(raw)
            path.write_bytes(sink.getvalue().to_pybytes())
    return path


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "lz4", "zip"])
def test_compressed_files_are_read_and_a_cut_one_is_named(ending, tmp_path):
    rows = "".join(json.dumps({"text": f"{i} {'é' * (i % 7)}"}) + "\n" for i in range(500))
    path = compress(rows.encode(), tmp_path / f"rows.jsonl.{ending}")
    assert texts(path) == [f"{i} {'é' * (i % 7)}" for i in range(500)]
    text = compress(b"a\r\nb", tmp_path / f"one.txt.{ending}")
    assert texts(text, format="text") == ["a\nb"]
    path.write_bytes(path.read_bytes()[:-20])
    said = message(path)
    assert said.startswith(f"source 'made': {path}: cannot be read to its end (") and said.endswith(
        "); replace the file"
    )
    assert "\n" not in said


def test_a_zip_gives_each_member_a_document_and_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("b.txt", "a.txt", "__MACOSX/._a.txt"):
            archive.writestr(name, name)
    found = read(tmp_path / "a.zip", format="text")
    assert [(d.id, d.text) for d in found] == [("made/a.zip/a.txt", "a.txt"), ("made/a.zip/b.txt", "b.txt")]
    for name in ("x.tar", "x.tar.gz", "x.tgz", "x.7z"):
        (tmp_path / name).write_bytes(b"x")
        assert message(tmp_path / name) == (
            f"source 'made': {tmp_path}/{name}: this kind of archive is not read; unpack it, or use .gz, .bz2, .xz, "
            ".zst or .zip"
        )


def test_a_byte_order_mark_and_carriage_returns_at_line_ends_are_framing(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree \xef\xbb\xbf\n")
    assert texts(tmp_path / "a.txt", format="text") == ["one\ntwo\nthree \ufeff\n"]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\r\n{"text": "\\ufeffc\\r"}\r\n')
    assert texts(tmp_path / "a.jsonl") == ["a\r\nb", "\ufeffc\r"]  # what is in a string is content


def test_arrays_of_objects_and_of_strings_are_read_like_lines(tmp_path):
    (tmp_path / "a.json").write_text('\n [{"text": "a"},\n\n {"text": "b", "id": 5}]\n')
    assert [(d.id, d.text) for d in read(tmp_path / "a.json")] == [("made/000000000", "a"), ("made/5", "b")]
    (tmp_path / "a.json").write_text('["a", "b"]')
    assert texts(tmp_path / "a.json", text_field="body") == ["a", "b"]


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "a\u2028b\u0085c"}\n{"text": "\\u0000\\u001e"}'.encode())
    assert texts(tmp_path / "a.jsonl") == ["a\u2028b\u0085c", "\0\x1e"]


def test_half_a_surrogate_pair_becomes_the_replacement_character_and_is_counted(tmp_path):
    tally = Tally()
    rows = [r'{"text": "a\ud800b", "id": "\udfff"}', r'{"text": "\ud83d\ude00"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = read(tmp_path / "a.jsonl", tally, select={"hash": [0, 1]})
    assert [d.text for d in found] == ["a\ufffdb", "\U0001f600"] and tally.mended == 1
    assert 0 <= found[0].position < 1


def test_an_empty_file_among_others_is_nothing(tmp_path, jsonl):
    jsonl([{"text": "a"}], "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl").write_bytes(b"\n\r\n")
    assert texts(tmp_path / "*.jsonl") == ["a"]
    assert message(tmp_path / "b.jsonl") == "source 'made': empty corpus: no document has text and passes its select"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"text": "a"}\n[1]\n', "line 2: no JSON object; give one object a line, or an array of them"),
        (b"[1]", "element 0: no JSON object; give one object a line, or an array of them"),
        (b'{"text": "a"', "line 1: not JSON (Expecting ',' delimiter: line 1 column 13 (char 12)); give one JSON"),
        (b"\n\0\0\0\0", "line 2: not JSON (Expecting value: line 1 column 1 (char 0)); give one JSON"),
        (b'{"text": "caf\xe9"}', "line 1: not UTF-8 (invalid continuation byte); convert the file"),
        ('{"text": "a"}'.encode("utf-16"), "line 1: not UTF-8 (invalid start byte); convert the file"),
        (b"[" * 100_000, "line 1: not JSON (maximum recursion depth exceeded"),
    ],
)
def test_what_is_no_json_is_one_line_with_its_place(raw, said, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(raw)
    found = message(tmp_path / "a.jsonl")
    assert found.startswith(f"source 'made': {tmp_path}/a.jsonl, {said}")
    assert "\n" not in found


def test_parquet_that_cannot_be_used_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "date": ["b"]}), path)
    assert message(path, format="parquet") == f"source 'made': {path}: no column 'text'; columns: body, date"
    path.write_bytes(b"")
    assert message(path, format="parquet").startswith(f"source 'made': {path}: cannot be read (")
    pq.write_table(pa.table({"text": [b"raw"]}), path)
    assert message(path, format="parquet") == (
        "source 'made': row 0 has bytes in text_field='text'; name the field of the text"
    )


DAYS = ["2013-01-05", "2014-12-31", "2015-01-01", "2015-06-30"]


def test_documents_are_held_out_by_date_however_the_date_is_stored(tmp_path, jsonl):
    """Bounds are strings as recipes have them; the two halves of a split lose nothing and share nothing."""
    moments = [datetime.fromisoformat(f"{day}T15:30:00") for day in DAYS]
    columns = {
        "day": pa.array([date.fromisoformat(day) for day in DAYS]),
        "moment": pa.array(moments, pa.timestamp("us")),
        "nano": pa.array(moments, pa.timestamp("ns")),
        "zone": pa.array(moments, pa.timestamp("ms", tz="UTC")),
        "string": [f"{day}T15:30:00Z" for day in DAYS],
    }
    pq.write_table(pa.table({"text": DAYS, **columns}), tmp_path / "a.parquet")
    lines = jsonl([{"text": day, "string": day, "long": f"{day} 15:30"} for day in DAYS])

    def chosen(field: str, **bounds) -> list[str]:
        select = {"field": field, **bounds}
        if field in columns:
            return texts(tmp_path / "a.parquet", format="parquet", select=select)
        return texts(lines, select=select)

    for field in (*columns, "string", "long"):
        for last, first in (("2014-12-31", "2015-01-01"), ("2014", "2015"), ("2014-12", "2015-01")):
            assert chosen(field, max=last) == DAYS[:2], (field, last)
            assert chosen(field, min=first) == DAYS[2:], (field, first)
        assert chosen(field, min=date(2014, 12, 31), max=date(2015, 1, 1)) == DAYS[1:3]
    for field in ("moment", "nano", "zone"):
        assert chosen(field, min="2014-12-31T15:30:00") == chosen(field, min="2014-12-31T16:30:00+01:00") == DAYS[1:]
        assert chosen(field, min="2014-12-31 15:30:01") == DAYS[2:]
        assert chosen(field, among=["2014-12-31"]) == DAYS[1:2]
        assert chosen(field, exclude=["2014-12-31", date(2013, 1, 5)]) == DAYS[2:]
    with pytest.raises(UserError, match=r"with 2014; write the bound as a date, e\.g\. 2014-12-31$"):
        chosen("day", exclude=[2014])
    for bound in ("autumn", 2014):
        assert message(tmp_path / "a.parquet", format="parquet", select={"field": "day", "min": bound}) == (
            f"source 'made': select compares day=datetime.date(2013, 1, 5) of made/000000000 with {bound!r}; write the "
            "bound as a date, e.g. 2014-12-31"
        )


def test_times_of_day_are_compared_as_times_however_a_string_writes_them(jsonl):
    """As text a space comes before a T, and 11:00+02:00 after 10:00."""
    written = ["2014-12-31 09:00:00", "2014-12-31 11:00:00", "2014-12-31T11:00:00Z", "2014-12-31T11:00:00+02:00"]
    rows = [{"text": one, "date": one} for one in written]
    for bound in (datetime(2014, 12, 31, 10), "2014-12-31 10:00", "2014-12-31T10:00:00Z", "2014-12-31T11:00+01:00"):
        assert texts(jsonl(rows), select={"field": "date", "min": bound}) == written[1:3], bound
        assert texts(jsonl(rows), select={"field": "date", "max": bound}) == [written[0], written[3]], bound
    for value in ("2014-12-31 11:00 UTC", "2014-12-31 around noon"):
        assert message(jsonl([{"text": "x", "date": value}]), select={"field": "date", "min": "2014-12-31T10:00"}) == (
            f"source 'made': select compares date={value!r} of made/000000000 with '2014-12-31T10:00'; write the bound "
            "in the field's type"
        )
        taken = {"field": "date", "min": "2014-12-31 09:00 UTC"}
        assert texts(jsonl([{"text": "x", "date": value}]), select=taken) == ["x"]


def test_nan_is_no_number_that_lies_within_bounds(tmp_path, jsonl):
    """pandas writes it where a number is missing."""
    scores = [0.1, math.nan, 0.9]
    pq.write_table(pa.table({"text": ["low", "none", "high"], "score": scores}), tmp_path / "a.parquet")
    lines = jsonl([{"text": text, "score": score} for text, score in zip(("low", "none", "high"), scores, strict=True)])
    for path, kind in ((tmp_path / "a.parquet", "parquet"), (lines, "json")):
        assert texts(path, format=kind, select={"field": "score", "min": 0.5}) == ["high"]
        assert texts(path, format=kind, select={"field": "score", "max": 0.5}) == ["low"]
        assert texts(path, format=kind, select={"field": "score", "exclude": [0]}) == ["low", "none", "high"]


def test_a_moment_that_no_date_can_hold_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"], "at": pa.array([2**62], pa.timestamp("us"))}), path)
    assert message(path, format="parquet", select={"field": "at", "min": "2014"}).startswith(
        f"source 'made': {path}: cannot be read (date value out of range); "
    )
