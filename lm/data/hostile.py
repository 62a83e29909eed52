"""tokenizer.json files from elsewhere, opened so that a damaged or hostile one is an error within seconds."""

import threading

import tokenizers

from ..parts.errors import DataError

LARGEST = 256 << 20  # bytes of a file
MOST_TOKENS = 1 << 24
SECONDS = 10.0  # a good tokenizer takes a thousandth of that for the probes
PROBES = tuple(
    unit * (1024 // len(unit)) + end for unit in ("a", " ", "1", "a ", "aA1", "\n", ".") for end in ("!", "é")
)


def open_fast(raw: bytes, name: str) -> tokenizers.Tokenizer:
    """The tokenizer of a file's bytes. Raises DataError: no tokenizer, empty, too large, or one that never ends."""
    if len(raw) > LARGEST:
        raise DataError(f"tokenizer {name!r}: {len(raw):,} bytes, more than {LARGEST:,}; give another file")
    try:
        found = tokenizers.Tokenizer.from_buffer(raw)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # the library raises plain Exception, and panics are none
        raise DataError(f"tokenizer {name!r}: not a tokenizers file; give another file") from None
    ids = found.get_vocab(with_added_tokens=True).values()
    if not ids or max(ids) >= MOST_TOKENS:
        what = "has no tokens" if not ids else f"has the token id {max(ids)}, more than {MOST_TOKENS}"
        raise DataError(f"tokenizer {name!r}: {what}; give another file")
    if b'"Regex"' in raw:
        _check_that_it_ends(found, name)
    return found


def _check_that_it_ends(tokenizer: tokenizers.Tokenizer, name: str) -> None:
    """A regular expression can take exponential time; the thread that finds out is left to the end of the process."""
    failed: list[str] = []

    def encode() -> None:
        try:
            for text in PROBES:
                tokenizer.encode_batch([text], add_special_tokens=False)  # lets go of the interpreter
        except BaseException as error:
            failed.append(" ".join(str(error).split())[:200])

    probe = threading.Thread(target=encode, daemon=True)
    probe.start()
    probe.join(SECONDS)
    if probe.is_alive():
        raise DataError(
            f"tokenizer {name!r}: a regular expression in it takes more than {SECONDS:.0f} s for {len(PROBES)} words "
            "of 1,024 characters; give another file"
        )
    if failed:
        raise DataError(f"tokenizer {name!r}: cannot encode text ({failed[0]}); give another file")
