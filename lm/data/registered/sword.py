"""SWORD modules: compressed verse-keyed texts as Debian packages carry them.

A testament is three files. `.?zs` holds 12-byte block records (offset, compressed size, size) into `.?zz`, whose blocks
are zlib streams; `.?zv` holds one record per verse: block, offset within the block, length.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..document import Document
from .archives import read_members
from .clean import osis_to_text, tidy

SHORTEST = 200  # characters; shorter blocks are headings and placeholders


def read_module(name: str, path: Path, *, module: str, index: str, testaments: tuple[str, ...], join: str):
    """Documents of a module: one per block, which is a book or a chapter. Yields Document; meta: testament, block."""
    base = f"usr/share/sword/modules/{module}"
    files = read_members(path, {f"{base}/{t}.{index}{kind}" for t in testaments for kind in "svz"}.__contains__)
    for testament in testaments:
        blocks, verses, packed = (files[f"{base}/{testament}.{index}{kind}"] for kind in "svz")
        for block, entries in _blocks(blocks, verses, packed):
            text = tidy(join.join(osis_to_text(entry) for entry in entries))
            if len(text) > SHORTEST:
                yield Document(f"{name}/{testament}-{block:03d}", text, {"testament": testament, "block": block})


def _blocks(records: bytes, verses: bytes, packed: bytes) -> Iterator[tuple[int, list[str]]]:
    """(block number, texts of its verses); verses that share one entry give it once."""
    blocks = [
        zlib.decompress(packed[offset : offset + size]) if size else b""
        for offset, size, _ in struct.iter_unpack("<III", records)
    ]
    entries: dict[int, list[str]] = {}
    previous = None
    for block, offset, length in _verse_records(verses, len(blocks)).tolist():
        if length and (block, offset) != previous:
            previous = (block, offset)
            text = blocks[block][offset : offset + length].decode("utf-8", "replace")
            entries.setdefault(block, []).append(text)
    yield from entries.items()


def _verse_records(verses: bytes, n_blocks: int) -> np.ndarray:
    """[verses, 3] of block, offset, length. The length is 16 bits wide in z modules and 32 bits in z4 modules."""
    for length in ("<u2", "<u4"):
        layout = np.dtype([("block", "<u4"), ("offset", "<u4"), ("length", length)])
        if len(verses) % layout.itemsize == 0:
            records = np.frombuffer(verses, layout)
            if (records["block"] < max(1, n_blocks)).all():
                return np.stack([records[field].astype(np.int64) for field in ("block", "offset", "length")], axis=1)
    raise ValueError("SWORD verse index fits neither record width")
