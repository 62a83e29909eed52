"""Needles in a haystack: facts hidden in a long text, or words frequent in a long list, asked for at its end."""

from .measure import measure_needles, prompts_for
from .results import Needles, plot_heat_map
from .tasks import TASKS

__all__ = ["TASKS", "Needles", "measure_needles", "plot_heat_map", "prompts_for"]
