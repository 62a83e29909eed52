"""A reader of needle prompts that owes nothing to their generator, and a stand-in for a model that speaks for it."""

import re
from bisect import bisect_right
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch

from hybridlm.eval.needles import TASKS
from hybridlm.lm.data.tokenizer import train_tokenizer

from .conftest import PROSE, build

HAY = " ".join(f"Sentence number {i} of this text says little. Does it? “It does,” said {i + 7}." for i in range(400))
QUESTION = re.compile(r"\nWh[^\n]*(?:above are:|text above (?:is|are)|they are:)")
ASKED = re.compile(r"magic (?:number|uuid)s? for (.+?) in the text above\?")

LISTS = ("cwe", "fwe")
HIDING = [name for name in TASKS if name not in LISTS]

TOKENIZER = train_tokenizer(PROSE, 340)


def answers_of(text: str) -> set[str]:
    """What a reader of the whole prompt would answer, found without the generator."""
    if text.lstrip().startswith("Below is a numbered list"):
        return most_frequent(re.findall(r"\d+\. (\S+)", the_list(text, "Below is a numbered list", "\nWhich 10 ")), 10)
    if "coded words" in text:
        return most_frequent(the_list(text, "dots are no word.", "\nWhich three ").replace("...", "").split(), 3)
    if asked := re.findall(r"have the value (\d+), given", text):
        known = {asked[-1]}
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
            if source in known:
                known.add(name)
        return {name.lower() for name in known - {asked[-1]}}
    keys = re.split(", | and ", ASKED.search(text)[1])  # type: ignore[index]
    found = re.findall(r"One of the special magic (?:numbers|uuids) for (\S+) is: ([\w-]+)\.", text)
    return {value for key, value in found if key in keys}


def the_list(text: str, intro: str, question: str) -> str:
    """What lies between the last introduction and the question behind it."""
    return text[text.rindex(intro) : text.rindex(question)].removeprefix(intro)


def most_frequent(words: list[str], n: int) -> set[str]:
    """The n most frequent words; there must be others, all of them less frequent."""
    ranked = Counter(words).most_common()
    assert ranked[n - 1][1] > ranked[n][1]
    return {word for word, _ in ranked[:n]}


class Stub:
    """A model by the interface that needles use: what comes next is a function of the tokens so far."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, say):
        self.tokenizer, self.say = tokenizer, say
        self.config = build("[attention]").config
        self.reads: list[int] = []

    def modules(self):
        return iter([])

    def eval(self):
        return self

    def new_cache(self, n):
        return SeenTokens([[] for _ in range(n)])

    def head(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), self.config.vocab_size) * 50.0

    def __call__(self, ids, cu_seqlens=None, cache=None, logits=True):
        assert not logits
        self.reads.append(ids.shape[1])
        rows = list(ids) if cu_seqlens is None else ids[0].split(cu_seqlens.diff().tolist())
        after = []
        for seen, row in zip(cache.rows, rows, strict=True):
            for token in row.tolist():
                seen.append(token)
                after.append(seen[:])
        following = [self.say(tokens) if needed else 0 for tokens, needed in self._needed(after, rows, cu_seqlens)]
        hidden = torch.tensor(following, dtype=torch.float32)[:, None]
        return SimpleNamespace(hidden=hidden[None] if cu_seqlens is not None else hidden.unflatten(0, ids.shape))

    def _needed(self, after, rows, cu_seqlens):
        """Only the last token of each row is looked at, unless rows are packed: the oracle's reading is slow."""
        last = {int(i) - 1 for i in np.cumsum([len(row) for row in rows])}
        return [(tokens, cu_seqlens is not None or i in last) for i, tokens in enumerate(after)]


class SeenTokens:
    def __init__(self, rows):
        self.rows = rows

    def select(self, rows):
        return SeenTokens([self.rows[row][:] for row in rows])


def oracle(tokenizer):
    """Says the value of the key that the question is about, then EOS."""

    def say(tokens):
        text = tokenizer.decode(tokens)
        asked = list(QUESTION.finditer(text))
        if len(asked) <= ("VAR" in text or "numbered list" in text):  # these begin with a question that is answered
            return 0  # still reading
        size = range(len(tokens) + 1)
        prompt = bisect_right(size, asked[-1].end(), key=lambda i: len(tokenizer.decode(tokens[:i]))) - 1
        answer = [*tokenizer.encode_inside([say_in_order(text)])[0], tokenizer.eos_id]
        return answer[min(len(tokens) - prompt, len(answer) - 1)]

    return say


def say_in_order(text):
    """The answers as the text has them: variables in the order of their assignments, coded words by frequency."""
    answers = answers_of(text)
    if "numbered list" in text:
        return "".join(f" {i}. {word}" for i, word in enumerate(sorted(answers), 1))
    if "coded words" in text:
        return " " + ", ".join(sorted(answers, key=lambda word: -text.count(word)))
    if "have the value" in text:
        return " " + ", ".join(sorted((name.upper() for name in answers), key=lambda name: text.index(f"VAR {name} =")))
    return " " + ", ".join(sorted(answers, key=text.index))
