"""Indirect objects and coloured objects: two tasks that share a circuit in GPT-2 (Merullo et al. 2023, 2310.08744).

The templates, names and things are our own; what is kept is the construction and what the released sets balance.
"""

from typing import Any

from .words import COLOURS, NAMES, OBJECTS, PLACES, THINGS, draw, generator

Document = dict[str, Any]
OPENINGS = ("When {} and {} went to the {}", "After {} and {} arrived at the {}", "While {} and {} waited at the {}")
SURFACES = ("table", "desk", "floor")
SIGHTS = ("there is", "you see", "I see")


def indirect_objects(n: int, seed: int) -> list[Document]:
    """ "When A and B went to the shop, B gave a ring to" -> A: the name that came once.

    Half the sentences name the receiver first (ABBA), half second (BABA), and in each half the receiver is the first
    choice as often as the second.
    """
    rng = generator("ioi", seed)
    documents = []
    for i in range(n):
        receiver, giver = draw(rng, NAMES, 2)
        first, second = (receiver, giver) if i % 2 == 0 else (giver, receiver)
        opening = OPENINGS[rng.integers(len(OPENINGS))].format(first, second, PLACES[rng.integers(len(PLACES))])
        thing = THINGS[rng.integers(len(THINGS))]
        gold = i // 2 % 2
        choices = [receiver, giver] if gold == 0 else [giver, receiver]
        documents.append({"text": f"{opening}, {giver} gave a {thing} to", "choices": choices, "gold": gold})
    return documents


def coloured_objects(n: int, seed: int) -> list[Document]:
    """Three things with their colours, then the colour of one of them, after one solved example.

    The answer is none of the example's colours, each of the three places is asked equally often, and so is each place
    among the choices.
    """
    rng = generator("colours", seed)
    documents = []
    for i in range(n):
        colours = draw(rng, COLOURS, 6)
        things = draw(rng, OBJECTS, 6)
        asked, gold = i % 3, (i + i // 3) % 3
        shot = _scene(rng, colours[:3], things[:3], int(rng.integers(3)))
        example = f"{shot[0]} {shot[1].capitalize()}\n\n"
        question, answer = _scene(rng, colours[3:], things[3:], asked)
        others = [colour for colour in colours[3:] if colour != answer]
        choices = [colour.capitalize() for colour in (*others[:gold], answer, *others[gold:])]
        documents.append({"text": example + question, "choices": choices, "gold": gold})
    return documents


def _scene(rng: Any, colours: list[str], things: list[str], asked: int) -> tuple[str, str]:
    """The question up to "A:" and the colour that answers it."""
    one, two, three = (f"{_article(c)} {c} {thing}" for c, thing in zip(colours, things, strict=True))
    where, sight = SURFACES[rng.integers(len(SURFACES))], SIGHTS[rng.integers(len(SIGHTS))]
    text = f"Q: On the {where}, {sight} {one}, {two}, and {three}. What color is the {things[asked]}?\nA:"
    return text, colours[asked]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
