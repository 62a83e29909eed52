import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridlm.lm.data.document import Document
from hybridlm.lm.data.packing import PackedDataset, pack
from hybridlm.lm.data.tokenizer import Tokenizer, train_tokenizer

WORDS = ["whale", "ship", "sea", "harpoon", "captain", "deck", "storm", "mast", "Ahab", "lantern", "1851", "rope"]


def make_texts(n: int, seed: int = 0, longest: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(1, longest))) + ".\n\n  End" for _ in range(n)]


def make_documents(n: int, seed: int = 0, longest: int = 60) -> list[Document]:
    return [Document(f"made/{i}", text, {}) for i, text in enumerate(make_texts(n, seed, longest))]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(make_texts(200), 320)


@pytest.fixture
def make_pack(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., PackedDataset]:
    def make(name: str = "pack", n: int = 30, seed: int = 0, longest: int = 60) -> PackedDataset:
        pack(make_documents(n, seed, longest), tokenizer, tmp_path / name, fingerprint=f"{name}{n}{seed}{longest}")
        return PackedDataset(tmp_path / name)

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines and returns the file."""

    def write(rows: list[dict], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
