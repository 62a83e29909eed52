"""One form of a recipe's data: the tokenizer and packs that it needs, by fingerprint; opened, or made."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..parts.errors import ConfigError
from .corpus import Tally, documents
from .document import Document, digest
from .inventory import Changed, Content, Inventory, content_key
from .packed import PackedDataset
from .packing import FORMAT, is_packed, pack
from .sample import sample, spread
from .tokenizer import Tokenizer, train_tokenizer

if TYPE_CHECKING:
    from ..recipe.data import SourceConfig
    from ..recipe.recipe import Recipe

Task = Callable[[str], Callable[[int], None]]
"""Starts a line of progress and returns what advances it by bytes."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready to train on. weights[i] is the share of the mixture that train[i] has; they sum to 1."""

    tokenizer: Tokenizer
    train: list[PackedDataset]
    weights: list[float]
    valid: dict[str, list[PackedDataset]]
    folder: Path


class Preparation:
    """A recipe's data below the inventory's folder. `open` only reads; who calls `learn` and `make` holds the lock.

    old: select.hash looks at the ids of all documents, source names included, words of a document that spell a special
    token are that token, and keys are formed as they were then.
    """

    def __init__(self, recipe: "Recipe", inventory: Inventory, say: Callable[[str], None], *, old: bool = False):
        self.data, self.vocab_size, self.inventory, self.say = recipe.data, recipe.model.vocab_size, inventory, say
        self.folder, self.old = inventory.folder, old

    def open(self) -> Prepared | None:
        """The data if all of it is finished, else None."""
        if any(self.inventory.of(source) is None for source in self._sources()):
            return None
        tokenizer = self._tokenizer()
        return tokenizer and self._prepared(tokenizer, lambda source: self._packed(source, tokenizer))

    def learn(self, advance: Callable[[int], None] = lambda n_bytes: None) -> None:
        """Read the files of the sources that have changed, for their hashes; `advance` is told the bytes."""
        for source in self._sources():
            self.inventory.learn(source, advance)

    def make(self, task: Task) -> Prepared:
        """Train the tokenizer and pack what is not finished; `learn` comes first."""
        tokenizer = self._tokenizer() or self._train_tokenizer(task)
        self._keep(tokenizer)
        made = self._prepared(
            tokenizer, lambda source: self._packed(source, tokenizer) or self._pack(source, tokenizer, task)
        )
        assert made is not None
        return made

    def differs(self, other: "Preparation") -> bool:
        """Whether some source is packed otherwise in the other form."""
        if any(self._key(source) != other._key(source) for source in self._sources()):
            return True
        if self.data.tokenizer.kind == "train":
            return False
        mine, its = self._given_tokenizer(), other._given_tokenizer()
        return any(self._target(source, mine) != other._target(source, its) for source in self._sources())

    def _sources(self) -> "Iterator[SourceConfig]":
        yield from self.data.train
        for sources in self.data.valid.values():
            yield from sources

    def _prepared(
        self, tokenizer: Tokenizer, packed: "Callable[[SourceConfig], PackedDataset | None]"
    ) -> Prepared | None:
        train = [packed(source) for source in self.data.train]
        valid = {name: [packed(source) for source in sources] for name, sources in self.data.valid.items()}
        found = [dataset for dataset in train if dataset]
        held = {name: [dataset for dataset in sets if dataset] for name, sets in valid.items()}
        if len(found) < len(train) or any(len(held[name]) < len(sets) for name, sets in valid.items()):
            return None
        weights = mixture_weights(self.data.train, [dataset.n_tokens for dataset in found])
        return Prepared(tokenizer, found, weights, held, self.folder)

    def _key(self, source: "SourceConfig") -> list[object]:
        """What a source's documents depend on; where its files lie and its share of the mixture do not matter."""
        content = content_key(source, self.inventory.of(source) or [], old=self.old)
        by_text = source.select.hash is not None and source.format != "registered" and not self.old
        return [source.model_dump(exclude={"weight", "path"}), content, *["by text"] * by_text]

    def _target(self, source: "SourceConfig", tokenizer: Tokenizer) -> tuple[Path, str]:
        """A pack's folder and fingerprint."""
        of_tokenizer = tokenizer.fingerprint if self.old else tokenizer.packing_fingerprint
        fingerprint = digest(FORMAT, self._key(source), of_tokenizer)
        return self.folder / (re.sub(r"[^\w.-]+", "_", source.name)[:60] + f"-{fingerprint[:12]}"), fingerprint

    def _packed(self, source: "SourceConfig", tokenizer: Tokenizer) -> PackedDataset | None:
        target, fingerprint = self._target(source, tokenizer)
        return PackedDataset(target) if is_packed(target, fingerprint) else None

    def _pack(self, source: "SourceConfig", tokenizer: Tokenizer, task: Task) -> PackedDataset:
        target, fingerprint = self._target(source, tokenizer)
        tally, advance = Tally(), task(f"packing {source.name}")
        found = self._documents(source, tally)
        try:
            pack(found, tokenizer, target, fingerprint=fingerprint, workers=self.data.workers, advance=advance)
        except Changed:
            shutil.rmtree(target)  # its finished shards hold neither the old nor the new content
            raise
        self.say(tally.line(source))
        return PackedDataset(target)

    def _documents(self, source: "SourceConfig", tally: Tally) -> Iterator[Document]:
        """The source's documents. Raises Changed at their end if the files are not those that the key is made of."""
        before = self.inventory.of(source)
        yield from documents(source, self.data.cache, tally, by_id=self.old)
        if self.inventory.learn(source) != before:
            raise Changed.of(f"source {source.name!r}")

    def _tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None if it is still to be trained."""
        if self.data.tokenizer.kind == "train":
            target = self._trained()
            return Tokenizer.load(target) if (target / "tokenizer.model").is_file() else None
        return self._given_tokenizer()

    def _given_tokenizer(self) -> Tokenizer:
        special_text = "control" if self.old else self.data.tokenizer.special_text
        tokenizer = Tokenizer.load(self._given() or str(self.data.tokenizer.path)).for_training(special_text)
        if tokenizer.vocab_size > self.vocab_size:
            raise ConfigError(
                f"model.vocab_size={self.vocab_size}: {self.data.tokenizer.path} has {tokenizer.vocab_size} tokens; "
                f"set model.vocab_size={tokenizer.vocab_size} or more"
            )
        return tokenizer

    def _given(self) -> Path | None:
        """Where the tokenizer of kind=file is kept, if there is nothing at its path any more."""
        path = str(self.data.tokenizer.path)
        where = os.path.abspath(os.path.expanduser(path))
        kept = None if os.path.exists(where) else self.inventory.recall("tokenizer", path, f"tokenizer:{where}")
        return self.folder / kept[0].name if kept else None

    def _keep(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer of kind=file beside the packs that are made with it."""
        if self.data.tokenizer.kind == "file" and not self._given():
            name = f"tokenizer-{tokenizer.fingerprint[:12]}"
            tokenizer.save(self.folder / name)
            where = os.path.abspath(os.path.expanduser(str(self.data.tokenizer.path)))
            self.inventory.remember(f"tokenizer:{where}", [Content(name, tokenizer.fingerprint, False)])

    def _trained(self) -> Path:
        """Where a tokenizer lies that is trained on these sources."""
        keys = [self._key(source) for source in self.data.train]
        return self.folder / f"tokenizer-{digest(FORMAT, keys, self.data.tokenizer.max_bytes, self.vocab_size)[:12]}"

    def _train_tokenizer(self, task: Task) -> Tokenizer:
        max_bytes, advance = self.data.tokenizer.max_bytes, task("reading text for the tokenizer")
        samples = [sample(self._documents(source, Tally()), max_bytes, advance) for source in self.data.train]
        texts = spread(samples, max_bytes)
        task("training the tokenizer")
        train_tokenizer(texts, self.vocab_size).save(self._trained())
        return Tokenizer.load(self._trained())


def mixture_weights(sources: "list[SourceConfig]", n_tokens: list[int]) -> list[float]:
    """Shares that sum to 1: the given weights, and what they leave in proportion to tokens.

    When every source has a weight they are normalised. Raises ConfigError when some are given and leave nothing.
    """
    given = sum(source.weight or 0.0 for source in sources)
    if all(source.weight is not None for source in sources):
        return [(source.weight or 0.0) / given for source in sources]
    if given >= 1:
        raise ConfigError(
            f"data.train: the weights given sum to {given:g} and leave nothing for the sources without one; "
            "give weights below 1 in sum, or one to every source"
        )
    rest = sum(n for n, source in zip(n_tokens, sources, strict=True) if source.weight is None)
    return [
        source.weight if source.weight is not None else (1 - given) * n / rest
        for n, source in zip(n_tokens, sources, strict=True)
    ]
