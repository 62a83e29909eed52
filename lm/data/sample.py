"""The text that a tokenizer is trained on."""

import heapq
from collections.abc import Callable, Iterable, Iterator

from .document import Document


def sample(found: Iterable[Document], max_bytes: int, advance: Callable[[int], None]) -> list[str]:
    """Texts of a random sample of at least `max_bytes`, or all: the documents that come first by hash of their id."""
    kept: list[tuple[float, str, str]] = []  # heap, the largest hash on top
    size = 0
    for document in found:
        n_bytes = len(document.text.encode())
        advance(n_bytes)
        heapq.heappush(kept, (-document.position, document.id, document.text))
        size += n_bytes
        while size - (last := len(kept[0][2].encode())) >= max_bytes:
            heapq.heappop(kept)
            size -= last
    return [text for _, _, text in sorted(kept, reverse=True)]


def spread(samples: list[list[str]], max_bytes: int) -> Iterator[str]:
    """Texts of at most `max_bytes` in all, the same number from each sample as far as it goes; the last one is cut."""
    sizes = [sum(len(text.encode()) for text in texts) for texts in samples]
    left, quotas = max_bytes, {}
    for rank, index in enumerate(
        sorted(range(len(samples)), key=sizes.__getitem__)
    ):  # small samples leave more to others
        quotas[index] = min(sizes[index], left // (len(samples) - rank))
        left -= quotas[index]
    for index, texts in enumerate(samples):
        quota = quotas[index]
        for text in texts:
            raw = text.encode()[:quota]
            quota -= len(raw)
            if raw:
                yield raw.decode(errors="ignore")
