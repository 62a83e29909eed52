"""The allow-list of an export: which options of a model a foreign format knows.

A format names every option of the model section, of the mixers it has, and of what is nested in them. An option that
it does not name is refused whatever its value, and so is a value that it does not name of an option that is a choice:
what is added tomorrow cannot export as if it were not there.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ...mixers import MIXERS
from ...parts.errors import brief
from ...parts.strict import Strict

if TYPE_CHECKING:
    from ...recipe.model import BaseModelConfig


class KnownOptions(NamedTuple):
    """The options of one section that a format knows, by what it can do with them."""

    translated: tuple[str, ...] = ()
    """config.json or the tensors say them, with one value for all layers."""
    by_layer: tuple[str, ...] = ()
    """The same, with a value for each layer."""
    given: Mapping[str, str] = {}
    """Translated, and not None: what the format needs there, in words."""
    among: Mapping[str, tuple[Any, ...]] = {}
    """Translated, where it is one of these values; every choice between names is."""
    fixed: Mapping[str, Any] = {}
    """The format takes this value for granted."""
    unused: tuple[str, ...] = ()
    """No part in what a trained model computes: they belong to training, or change time and memory alone."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.translated, *self.by_layer, *self.given, *self.among, *self.fixed, *self.unused)

    def __or__(self, other: Self) -> "KnownOptions":
        """What either knows."""
        return KnownOptions(
            (*self.translated, *other.translated),
            (*self.by_layer, *other.by_layer),
            {**self.given, **other.given},
            {**self.among, **other.among},
            {**self.fixed, **other.fixed},
            (*self.unused, *other.unused),
        )


Known = Mapping[str, KnownOptions]
"""By section: "" is the model's own, a mixer's has its name, a nested one the path of its option."""

EVERYWHERE: Known = {
    "": KnownOptions(
        translated=(
            *("vocab_size", "d_model", "n_layers", "context", "norm_eps", "tie_embeddings"),
            *("pattern", "ratio", "layers"),
        ),
        given={"ffn": "a feed-forward"},
        among={"remainder": ("error", "cut")},
        fixed={"positions": "none", "logit_softcap": None},
        unused=("dropout", "z_loss", "init_std"),
    ),
    "ffn": KnownOptions(translated=("hidden", "multiple_of")),
}
"""What every format knows."""


def joined(known: Known, own: Known) -> Known:
    """What is known to all of some formats, and what one of them knows beyond it."""
    nothing = KnownOptions()
    return {section: known.get(section, nothing) | own.get(section, nothing) for section in {**known, **own}}


def refusals(model: "BaseModelConfig", known: Known) -> Iterator[str]:
    """Each option that the format cannot have as it is, or does not know: its name, its value and what is needed."""
    specs = model.layer_specs()
    found, mixers = sorted({spec.mixer for spec in specs}), sorted(set(MIXERS) & known.keys())
    if found != mixers:
        yield differs("layers", found, f"{' and '.join(mixers)}, and no other")
    yield from _section("", [model], known)
    for name in mixers:
        yield from _section(name, distinct(spec.options for spec in specs if spec.mixer == name), known)


def _section(path: str, sections: list[Any], known: Known) -> Iterator[str]:
    """The same of one section, which may differ from layer to layer."""
    for option in dict.fromkeys(option for section in sections for option in type(section).model_fields):
        if path or option not in MIXERS:  # a mixer's own section counts where it is a layer
            values = distinct(getattr(section, option) for section in sections)
            yield from _option(path, option, values, known)


def _option(path: str, option: str, values: list[Any], known: Known) -> Iterator[str]:
    own, name = known.get(path, KnownOptions()), f"{path}.{option}".removeprefix(".")
    if option not in own.names:
        value = values[0] if len(values) == 1 else values
        yield f"{name} is {value!r}, an option that this format does not know"
        return
    if option in own.unused:
        return
    allowed = (own.fixed[option],) if option in own.fixed else own.among.get(option, values)
    if wrong := [value for value in values if value not in allowed]:
        yield from dict.fromkeys(differs(name, value, " or ".join(map(repr, allowed))) for value in wrong)
    elif len(values) > 1 and option not in own.by_layer:
        yield differs(name, values, "one value for all layers")
    if None in values and option in own.given:
        yield differs(name, None, own.given[option])
    for value in values:
        if isinstance(value, Strict) and value not in wrong:  # which is refused whole
            yield from _section(name, [value], known)


def differs(name: str, value: Any, needed: str) -> str:
    return f"{name} is {'set' if isinstance(value, Strict) else brief(value, 200)}, needs {needed}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
