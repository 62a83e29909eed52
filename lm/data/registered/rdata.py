"""Character vectors out of an R lazy-load database, read without R."""

import struct
import zlib
from collections.abc import Iterator

STRSXP = 16  # R's type code of a character vector


def string_vectors(rdb: bytes) -> Iterator[list[str]]:
    """Every character vector of an .rdb file: records of a 4-byte length and a zlib stream of R's XDR serialisation."""
    at = 0
    while at + 4 < len(rdb):
        stream = zlib.decompressobj()
        record = stream.decompress(rdb[at + 4 :]) + stream.flush()
        at = len(rdb) - len(stream.unused_data)
        if record[:2] == b"X\n":
            strings = _strings(record)
            if strings:
                yield strings


def _strings(record: bytes) -> list[str] | None:
    """The vector that `record` serialises, or None when it is something else."""

    def int_at(position: int) -> int:
        return struct.unpack_from(">i", record, position)[0]

    at = 14  # "X\n", format version, writer's version, oldest reader's version
    if int_at(2) == 3:
        at += 4 + int_at(at)  # version 3 adds the name of the native encoding
    if int_at(at) & 0xFF != STRSXP:
        return None
    count, at, strings = int_at(at + 4), at + 8, []
    for _ in range(count):
        length, at = int_at(at + 4), at + 8  # -1 is NA
        strings.append(record[at : at + max(length, 0)].decode("utf-8", "replace"))
        at += max(length, 0)
    return strings
