"""The words that probes are made of: common, short, and none a part of another in the same list."""

from collections.abc import Sequence

import numpy as np

# ruff: noqa: SIM905 (a line of words reads better than a column of strings)

NAMES = (
    "Alice Brian Carol David Emma Frank Grace Henry Irene James Karen Laura Martin Nancy Oscar Peter Rachel Simon "
    "Teresa Victor Wendy Arthur Bruce Diana Edward Fiona George Helen Isaac Julia"
).split()
SURNAMES = (
    "Adler Becker Carver Dawson Ellison Fisher Garner Hobbs Ingram Jensen Keller Lowell Mercer Norton Osborne Porter "
    "Quinlan Ramsey Sutton Turner Underhill Vaughan Walcott Yates Zimmer Barlow Chandler Draper Everett Forbes"
).split()
PLACES = "shop park station library office garden school museum harbour market".split()
THINGS = "ring book key lamp letter basket ticket drum camera flute".split()
OBJECTS = "cup pen ball brush plate spoon jar box bag hat belt scarf mug comb clock vase kite".split()
COLOURS = "red orange yellow green blue purple brown black".split()
NOUNS = (
    "apple river stone window bread candle forest silver button winter ladder pencil mirror tiger violin carpet pepper "
    "island rocket summer blanket hammer marble castle dragon feather pillow saddle turtle walnut anchor barrel circle "
    "desert engine falcon garlic helmet insect jacket kitten lemon magnet needle oyster parrot quartz ribbon salmon "
    "temple uncle velvet wagon yogurt zipper acorn bucket copper dinner elbow finger ginger honey lantern meadow"
).split()


def generator(probe: str, seed: int) -> np.random.Generator:
    """A stream of its own for each probe: Philox, keyed by the name and the seed."""
    return np.random.Generator(np.random.Philox(key=[int.from_bytes(probe.encode()[:8], "little"), seed]))


def draw(rng: np.random.Generator, words: Sequence[str], n: int) -> list[str]:
    """n distinct words in random order."""
    return [words[int(i)] for i in rng.permutation(len(words))[:n]]
