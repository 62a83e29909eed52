"""Sets of measurements by name, as `hybridlm eval RUN --suite NAME` runs them."""

from ..needles.measurement import NeedlesMeasurement
from ..positions.measurement import PositionsMeasurement
from .catalogue import CATALOGUE, GROUPS, unknown


def _tagged(suite: str) -> tuple[str, ...]:
    return tuple(name for name, entry in CATALOGUE.items() if suite in entry.suites)


SUITES: dict[str, tuple[str, ...]] = {
    "recall": _tagged("recall"),
    "commonsense": _tagged("commonsense"),
    "long": (NeedlesMeasurement.name, PositionsMeasurement.name),
    "probes": _tagged("probes"),
}
SUITES["all"] = (
    *(name for members in SUITES.values() for name in members),
    *("triviaqa", "nq_open", "drop", "truthfulqa_mc1", *GROUPS),
)


def members_of(suite: str) -> tuple[str, ...]:
    """What a suite consists of; a ConfigError names the nearest suite."""
    if suite not in SUITES:
        raise unknown("suite", suite, list(SUITES))
    return SUITES[suite]
