"""Needles in a haystack: facts hidden in a long text, or words frequent in a long list, asked for at its end."""

from .measure import Questions, measure_needles
from .results import Needles, plot_heat_map
from .tasks import TASKS

__all__ = ["TASKS", "Needles", "Questions", "measure_needles", "plot_heat_map"]
