"""What a GGUF file says of its own sizes, held against the file before anybody allocates by it."""

import math
import struct
from pathlib import Path
from typing import BinaryIO

from ..parts.errors import CheckpointError

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of a value, by its type's number."""
MOST_VALUES = 1 << 21  # of an array of the metadata
MOST_ENTRIES = 1 << 16  # keys, tensors
MOST_ELEMENTS = 1 << 48  # of a tensor


def check_header(path: Path) -> None:
    """Raises CheckpointError for a file that is cut off, or whose lengths cannot be."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no file; give a .gguf file")
    with path.open("rb") as file:
        try:
            _Header(file, path.stat().st_size).read()
        except (ValueError, struct.error) as error:
            raise CheckpointError(f"{path}: not a whole GGUF file ({error}); get the file again") from None


class _Header:
    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def read(self) -> None:
        if self.file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, readable are 2 and 3")
        n_tensors, n_keys = self.number("<Q"), self.number("<Q")
        if max(n_tensors, n_keys) > MOST_ENTRIES:
            raise ValueError(f"{n_tensors} tensors and {n_keys} keys")
        for _ in range(n_keys):
            self.skip_string()
            self.skip_value(self.number("<I"))
        for _ in range(n_tensors):
            self.skip_string()
            n_dims = self.number("<I")
            if n_dims > 8 or math.prod(self.number("<Q") for _ in range(n_dims)) > MOST_ELEMENTS:
                raise ValueError("a tensor of impossible shape")
            self.skip(4)
            if self.number("<Q") > self.size:
                raise ValueError("a tensor behind its end")

    def number(self, form: str) -> int:
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def skip(self, n: int) -> None:
        if n > self.size - self.file.tell():
            raise ValueError(f"{n} bytes wanted, {self.size - self.file.tell()} left")
        self.file.seek(n, 1)

    def skip_string(self) -> None:
        self.skip(self.number("<Q"))

    def skip_value(self, kind: int) -> None:
        if kind == STRING:
            self.skip_string()
        elif kind in BYTES:
            self.skip(BYTES[kind])
        elif kind == ARRAY:
            inner, n = self.number("<I"), self.number("<Q")
            if n > MOST_VALUES or inner == ARRAY:
                raise ValueError(f"an array of {n} values of type {inner}")
            if inner == STRING:
                for _ in range(n):
                    self.skip_string()
            elif inner in BYTES:
                self.skip(n * BYTES[inner])
            else:
                raise ValueError(f"a value of type {inner}")
        else:
            raise ValueError(f"a value of type {kind}")
