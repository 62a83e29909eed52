"""A recipe's grid: named variants of it, each no more than a list of overrides that could as well be typed.

    grid:
      mixers: {hgrn2: [], gated_deltanet: [model.n_layers=21]}       a mixer, and what it needs besides its layers
      ratios: {6to1: {linear: 6, attention: 1}, pure: {linear: 1}}   `linear` stands for the mixer
      others: {transformer: ["model.pattern=[attention]"]}           variants outside the product

has the variants hgrn2-6to1, hgrn2-pure, gated_deltanet-6to1, gated_deltanet-pure and transformer. With `seeds: [0, 1]`
each is there twice, hgrn2-6to1-s0 and hgrn2-6to1-s1 and so on: tables have the mean and the spread of each pair.
"""

from typing import NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from ..mixers import MIXERS
from ..parts.errors import brief
from ..parts.ranges import Name, Seed, Share, each_once
from ..parts.strict import Strict, nearest


class Variant(NamedTuple):
    """One point of a grid. `mixer` and `ratio` are its row and column, None for one of `others`; without its seed it
    would be called `of`."""

    name: str
    overrides: list[str]
    mixer: str | None = None
    ratio: str | None = None
    of: str = ""


class GridConfig(Strict):
    """Every mixer at every ratio, and single variants beside them; see the module."""

    mixers: dict[str, list[str]] = Field(default_factory=dict)
    ratios: dict[Name, dict[str, Share]] = Field(default_factory=dict)
    others: dict[Name, list[str]] = Field(default_factory=dict)
    seeds: list[Seed] | None = Field(default=None, min_length=1)

    _once = field_validator("seeds")(each_once)

    @model_validator(mode="after")
    def _there_is_a_variant(self) -> Self:
        if not self.others and not (self.mixers and self.ratios):
            raise ValueError("has no variant; give mixers and ratios, or others")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for name in self.mixers:
            if name not in MIXERS:
                raise ValueError(f"mixers: unknown mixer {brief(name)}; {nearest(name, MIXERS)}")
        for name, ratio in self.ratios.items():
            if "linear" not in ratio:
                raise ValueError(f"ratios: {name} has no share for `linear`, which stands for the mixer; add one")
            for part in ratio:
                if part != "linear" and part not in MIXERS:
                    raise ValueError(
                        f"ratios: unknown mixer {brief(part)} in {name}; {nearest(part, ['linear', *MIXERS])}"
                    )
                if part in self.mixers:
                    raise ValueError(f"ratios: {name} mixes {part!r} with itself; move it from mixers to others")
        clashes = self.others.keys() & {f"{mixer}-{ratio}" for mixer in self.mixers for ratio in self.ratios}
        if clashes:
            raise ValueError(f"others: {min(clashes)!r} is already the name of a mixer at a ratio; choose another")
        return self

    def variants(self, recipe: str) -> dict[str, Variant]:
        """All variants by name, mixer by mixer; their overrides end with the run's name, `recipe` and the variant's."""
        found = [variant for one in self._without_seeds() for variant in self._with_seeds(one)]
        return {v.name: v._replace(overrides=[*v.overrides, f"name={recipe}-{v.name}"]) for v in found}

    def _without_seeds(self) -> list[Variant]:
        found = [
            Variant(f"{mixer}-{ratio}", [*own, f"model.ratio={_written(shares, mixer)}"], mixer, ratio)
            for mixer, own in self.mixers.items()
            for ratio, shares in self.ratios.items()
        ]
        return found + [Variant(name, own) for name, own in self.others.items()]

    def _with_seeds(self, one: Variant) -> list[Variant]:
        if self.seeds is None:
            return [one._replace(of=one.name)]
        return [
            one._replace(name=f"{one.name}-s{seed}", overrides=[*one.overrides, f"seed={seed}"], of=one.name)
            for seed in self.seeds
        ]


def _written(shares: dict[str, int], mixer: str) -> str:
    """The value of `model.ratio` with the mixer in the place of `linear`."""
    parts = (f"{mixer if part == 'linear' else part}: {share}" for part, share in shares.items())
    return "{" + ", ".join(parts) + "}"
