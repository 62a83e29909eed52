"""Files of one record a line: what a killed writer leaves behind costs its own line and no other."""

import os

import pytest

from hybridlm.lm.data.files import append_records, read_records
from hybridlm.lm.parts.errors import DataError


def test_records_come_back_in_order_and_a_missing_file_has_none(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    append_records(path, [{"step": 1, "of": "é"}, {"step": 2}])
    append_records(path, [{"step": 3}])
    assert read_records(path) == [{"step": 1, "of": "é"}, {"step": 2}, {"step": 3}]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("cut", [1, 10, len('{"step": 2, "slices": [{"n": 1}')])
def test_a_line_that_was_cut_off_is_skipped_and_the_next_one_stands_by_itself(cut, tmp_path):
    path = tmp_path / "records.jsonl"
    append_records(path, [{"step": 1}, {"step": 2, "slices": [{"n": 1}]}])
    os.truncate(path, len('{"step": 1}\n') + cut)
    assert read_records(path) == [{"step": 1}]
    append_records(path, [{"step": 3}])
    append_records(path, [{"step": 4}])
    assert read_records(path) == [{"step": 1}, {"step": 3}, {"step": 4}]


def test_a_record_that_lacks_only_its_end_of_line_counts(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"step": 1}')
    append_records(path, [{"step": 2}])
    assert read_records(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ["not json", "[1, 2]", "3"])
def test_a_file_of_something_else_is_named(line, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"other\.jsonl: not a file of one JSON record a line; move it away$"):
        read_records(path)
