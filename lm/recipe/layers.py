"""From the three spellings of a layer pattern to the list of layers."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from ..mixers import MIXERS
from ..mixers.options import MixerConfig
from ..parts.errors import ConfigError
from ..parts.shape import ModelShape
from ..parts.strict import nearest

Layer = str | dict[str, dict[str, Any]]
"""A layer is a mixer's name, or `{name: {option: value}}` to set options for this layer alone."""


class FeedForward(Protocol):
    """What layers need to know of the model's `ffn` section."""

    def width(self, d_model: int) -> int: ...


class Layered(Protocol):
    """What layers need to know of a `model` section."""

    d_model: int
    n_layers: int
    pattern: list[Layer] | None
    ratio: dict[str, int] | None
    layers: list[Layer] | None
    remainder: Any

    @property
    def ffn(self) -> FeedForward | None: ...

    @property
    def shape(self) -> ModelShape: ...

    def mixer_options(self, name: str) -> MixerConfig: ...


class LayerSpec(NamedTuple):
    """One layer: the mixer's registered name and its options, resolved for this model."""

    mixer: str
    options: MixerConfig


def layer_specs(model: Layered) -> list[LayerSpec]:
    """The `n_layers` layers that `pattern`, `ratio` or `layers` describes. Raises ValueError with the fix."""
    given = [name for name in ("pattern", "ratio", "layers") if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"layers: give exactly one of pattern, ratio and layers, got {' and '.join(given) or 'none'}")
    if model.pattern is not None:
        layers = _tile(model.pattern, model, "pattern")
    elif model.ratio is not None:
        layers = _tile(_spread(model.ratio), model, "ratio")
    else:
        layers = model.layers or []
        if len(layers) != model.n_layers:
            raise ValueError(f"layers: lists {len(layers)} layers but n_layers is {model.n_layers}; make them equal")
    resolved: dict[str, LayerSpec] = {}
    for layer in layers:
        if repr(layer) not in resolved:
            resolved[repr(layer)] = _spec(layer, model)
    return [resolved[repr(layer)] for layer in layers]


def _tile(period: list[Any], model: Layered, key: str) -> list[Any]:
    length, n_layers = len(period), model.n_layers
    if n_layers % length == 0:
        return period * (n_layers // length)
    if model.remainder == "cut":
        return _cut(period, n_layers, key)
    low = max(n_layers // length, 1) * length
    raise ValueError(
        f"{key}: a period of {length} layers does not divide n_layers={n_layers}; use n_layers={low} or "
        f"{low + length}, spell the layers out with layers:, or cut the last period with remainder: cut"
    )


def _cut(period: list[Any], n_layers: int, key: str) -> list[Any]:
    """The period repeated and cut at `n_layers`; kinds that fall off altogether take the last layers.

    With `ratio: {linear: r, attention: 1}` layer l is attention where (l + 1) mod (r + 1) = 0, and 24 layers of 24:1,
    one short of their period, have it in layer 23: full attention is never first, and comes as late as it can.
    """
    layers = (period * (n_layers // len(period) + 1))[:n_layers]
    kinds = [kind for i, kind in enumerate(period) if kind not in period[:i]]
    fallen = [kind for kind in kinds if kind not in layers]
    layers = layers[: max(n_layers - len(fallen), 0)] + fallen
    if any(kind not in layers for kind in kinds):
        raise ValueError(
            f"{key}: n_layers={n_layers} has no place for each of the {len(kinds)} kinds of layer, even with "
            f"remainder: cut; use n_layers={len(period)}, or spell the layers out with layers:"
        )
    return layers


def _spread(ratio: dict[str, int]) -> list[str]:
    """A period of sum(ratio) layers, every mixer spread evenly and the rarest last."""
    bad = {name: share for name, share in ratio.items() if share < 1}
    if not ratio or bad:
        raise ValueError(f"ratio: {bad or ratio} is impossible; every share is a whole number of at least 1")
    # the j-th of n layers of a kind wants the end of its n-th part of the period; ties go to the larger share
    wanted = [((j + 1) / n, -n, name) for name, n in ratio.items() for j in range(n)]
    return [name for *_, name in sorted(wanted, key=lambda w: w[:2])]


def _spec(layer: str | dict[str, dict[str, Any]], model: Layered) -> LayerSpec:
    if isinstance(layer, dict) and len(layer) != 1:
        raise ValueError(f"layers: {layer} is not one layer; write a name or {{name: {{option: value}}}}")
    name, own = (layer, {}) if isinstance(layer, str) else next(iter(layer.items()))
    if name not in MIXERS:
        raise ValueError(f"layers: unknown mixer {name!r}; {nearest(name, MIXERS)}")
    options = model.mixer_options(name)
    if own:
        try:
            options = type(options).parse({**options.model_dump(exclude_unset=True), **own}, where=f"layer {name}")
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return LayerSpec(name, _finished(options, model))


def _finished(options: MixerConfig, model: Layered) -> MixerConfig:
    hidden = options.ffn_hidden or (model.ffn.width(model.d_model) if model.ffn else 0)
    finished = options.resolve(model.shape).model_copy(update={"ffn_hidden": hidden})
    if missing := finished.unfinished():
        raise TypeError(f"{type(options).__name__}.resolve: leaves {', '.join(missing)} without a size")
    return finished


def describe(specs: Iterable[LayerSpec]) -> str:
    """Names in order with repeats folded: `3 x gated_deltanet, attention, 3 x gated_deltanet, attention`."""
    runs: list[list[Any]] = []
    for spec in specs:
        if runs and runs[-1][0] == spec.mixer:
            runs[-1][1] += 1
        else:
            runs.append([spec.mixer, 1])
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in runs)
