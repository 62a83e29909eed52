"""Which files a path names: no file is lost without a word, and none comes twice."""

import os
from pathlib import Path

import pytest

from hybridlm.lm.data.find import files_below, find_files
from hybridlm.lm.parts.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_patterns_and_folders_find_what_they_found_before(tmp_path):
    root = touch(tmp_path, "a.txt", "b.jsonl", "sub/c.txt", "sub/deep/d.txt", ".hid/e.txt", "sub/.f.txt", "sub-1/g.txt")
    assert names(find_files(root / "a.txt"), root) == ["a.txt"]
    assert names(find_files(root / "*.txt"), root) == ["a.txt"]
    assert names(find_files(root / "**" / "*.txt"), root) == ["a.txt", "sub/c.txt", "sub/deep/d.txt", "sub-1/g.txt"]
    assert names(find_files(root / "sub" / "**"), root) == ["sub/c.txt", "sub/deep/d.txt"]
    assert names(find_files(root / "su[bx]" / "?.txt"), root) == ["sub/c.txt"]
    assert names(find_files(root / ".h*" / "*.txt"), root) == [".hid/e.txt"]
    assert find_files(root / "sub") == find_files(root / "none" / "*.txt") == []
    assert len(files_below(root, ".txt")) == 6
    assert find_files(root / "*.txt") == sorted(root.glob("*.txt"))


def test_a_relative_path_is_found_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "data/a.txt"))
    assert find_files(Path("data/*.txt")) == find_files(Path("data/a.txt")) == [Path("data/a.txt")]
    assert find_files(Path("../*/data/a.txt"))[0].is_file()


def test_a_name_with_brackets_that_exists_is_taken_as_it_stands(tmp_path):
    root = touch(tmp_path, "[2020]/part[1].txt", "[2020]/part1.txt", "2/part1.txt")
    assert names(find_files(root / "[2020]" / "part[1].txt"), root) == ["[2020]/part[1].txt"]
    assert names(find_files(root / "[2020]" / "*.txt"), root) == ["[2020]/part1.txt", "[2020]/part[1].txt"]
    assert names(find_files(root / "[2x]" / "part[0-9].txt"), root) == ["2/part1.txt"]


@pytest.mark.parametrize("find", [lambda root: files_below(root, ".txt"), lambda root: find_files(root / "**/*.txt")])
def test_linked_files_and_folders_are_read_once_each(find, tmp_path):
    root = touch(tmp_path / "corpus", "own/1.txt", "own/2.txt")
    other = touch(tmp_path / "other", "3.txt", "deep/4.txt")
    (root / "linked").symlink_to(other)
    (root / "again").symlink_to(other / "deep")
    (root / "alias.txt").symlink_to(root / "own" / "1.txt")
    (root / "5.txt").symlink_to(touch(tmp_path, "five.txt") / "five.txt")
    (other / "deep" / "round").symlink_to(root)
    found = find(root)
    assert len({os.path.realpath(path) for path in found}) == len(found) == 5
    assert names(found, root) == ["5.txt", "again/4.txt", "linked/3.txt", "own/1.txt", "own/2.txt"]


def test_many_links_round_about_end(tmp_path):
    touch(tmp_path, *(f"{i}/{i}.txt" for i in range(8)))
    for i in range(8):
        for j in range(8):
            (tmp_path / str(i) / f"to{j}").symlink_to(tmp_path / str(j))
    assert names(files_below(tmp_path, ".txt"), tmp_path) == [f"{i}/{i}.txt" for i in range(8)]
    assert names(find_files(tmp_path / "**" / "**" / "*.txt"), tmp_path) == [f"{i}/{i}.txt" for i in range(8)]


def test_a_link_to_nothing_and_a_closed_folder_are_named(tmp_path, monkeypatch):
    root = touch(tmp_path, "sub/a.txt")
    (root / "b.txt").symlink_to("gone.txt")
    for find in (
        lambda: files_below(root, ".txt"),
        lambda: find_files(root / "*.txt"),
        lambda: find_files(root / "b.txt"),
    ):
        with pytest.raises(DataError) as error:
            find()
        assert str(error.value) == f"{root}/b.txt: a link to gone.txt, which is not there; mend the link or remove it"
    (root / "b.txt").unlink()

    def closed(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "listdir", closed)
    for find in (lambda: files_below(root, ".txt"), lambda: find_files(root / "*.txt")):
        with pytest.raises(DataError, match=rf"^{root}: cannot be read \(Permission denied\); make it readable$"):
            find()
