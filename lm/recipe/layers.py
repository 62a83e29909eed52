"""From the three spellings of a layer pattern to the list of layers."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from ..mixers.options import MixerConfig

Layer = str | dict[str, dict[str, Any]]
"""A layer is a mixer's name, or `{name: {option: value}}` to set options for this layer alone."""
Remainder = Literal["error", "cut"]


class LayerSpec(NamedTuple):
    """One layer: the mixer's registered name and its options, resolved for this model."""

    mixer: str
    options: MixerConfig


def spelled_out(
    n_layers: int,
    remainder: Remainder,
    *,
    pattern: list[Layer] | None,
    ratio: dict[str, int] | None,
    layers: list[Layer] | None,
) -> list[Layer]:
    """The `n_layers` layers that `pattern`, `ratio` or `layers` describes. Raises ValueError with the fix."""
    spellings = {"pattern": pattern, "ratio": ratio, "layers": layers}
    given = [name for name, spelling in spellings.items() if spelling is not None]
    if len(given) != 1:
        raise ValueError(f"layers: give exactly one of pattern, ratio and layers, got {' and '.join(given) or 'none'}")
    if pattern is not None:
        return _tile(pattern, n_layers, remainder, "pattern")
    if ratio is not None:
        return _tile(_spread(ratio), n_layers, remainder, "ratio")
    layers = layers or []
    if len(layers) != n_layers:
        raise ValueError(f"layers: lists {len(layers)} layers but n_layers is {n_layers}; make them equal")
    return layers


def _tile(period: list[Any], n_layers: int, remainder: Remainder, key: str) -> list[Layer]:
    length = len(period)
    if n_layers % length == 0:
        return period * (n_layers // length)
    if remainder == "cut":
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
    # the j-th of n layers of a kind wants the end of its n-th part of the period; ties go to the larger share
    wanted = [((j + 1) / n, -n, name) for name, n in ratio.items() for j in range(n)]
    return [name for *_, name in sorted(wanted, key=lambda w: w[:2])]


def describe(specs: Iterable[LayerSpec]) -> str:
    """Names in order with repeats folded: `3 x gated_deltanet, attention, 3 x gated_deltanet, attention`."""
    runs: list[list[Any]] = []
    for spec in specs:
        if runs and runs[-1][0] == spec.mixer:
            runs[-1][1] += 1
        else:
            runs.append([spec.mixer, 1])
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in runs)
