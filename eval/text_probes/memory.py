"""Looking up and copying, in text: a phone book, a list of words, pairs of words.

Phone book and copying follow Jelassi et al. 2024 (arXiv 2402.01032), pairs Arora et al. 2023 (arXiv 2312.04927).
"""

from typing import Any

from .words import NAMES, NOUNS, SURNAMES, draw, generator

Document = dict[str, Any]


def phonebook(n: int, seed: int, lines: int) -> list[Document]:
    """`lines` entries "First Last: ten digits", two of them once more as examples, then a third one's name."""
    rng = generator("phone", seed)
    documents = []
    for _ in range(n):
        people = rng.permutation(len(NAMES) * len(SURNAMES))[:lines]
        names = [f"{NAMES[p % len(NAMES)]} {SURNAMES[p // len(NAMES)]}" for p in people]
        numbers = [f"{rng.integers(6, 10)}{rng.integers(0, 10**9):09d}" for _ in names]
        book = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
        *shown, asked = rng.permutation(lines)[:3]
        text = "\n".join([*book, "", *(book[i] for i in shown), f"{names[asked]}:"])
        documents.append({"prompt": text, "golds": [numbers[asked]], "closed": ""})
    return documents


def copying(n: int, seed: int, words: int) -> list[Document]:
    """A line of random words to write again, after one such line that has been; the two have no word in common."""
    rng = generator("copying", seed)
    documents = []
    for _ in range(n):
        drawn = draw(rng, NOUNS, 2 * words)
        example, line = " ".join(drawn[:words]), " ".join(drawn[words:])
        text = f"Text: {example}\nThe same text again: {example}\n\nText: {line}\nThe same text again:"
        documents.append({"prompt": text, "golds": [line], "closed": ""})
    return documents


def pairs(n: int, seed: int, n_pairs: int) -> list[Document]:
    """MQAR in text: `n_pairs` lines "key: value", one key again, all values to choose from.

    Keys and values are distinct words; every line is asked equally often, and so is every place among the choices.
    """
    rng = generator("pairs", seed)
    documents = []
    for i in range(n):
        words = draw(rng, NOUNS, 2 * n_pairs)
        keys, values = words[:n_pairs], words[n_pairs:]
        asked, gold = i % n_pairs, (i + i // n_pairs) % n_pairs
        others = [value for value in values if value != values[asked]]
        text = "\n".join([*(f"{k}: {v}" for k, v in zip(keys, values, strict=True)), f"{keys[asked]}:"])
        choices = [*others[:gold], values[asked], *others[gold:]]
        documents.append({"text": text, "choices": choices, "gold": gold})
    return documents
