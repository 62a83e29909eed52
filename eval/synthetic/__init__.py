"""Synthetic tasks: recall, copying, state tracking, in-context regression. A new task is one line of TASKS."""

from typing import Any

from ...lm.parts.errors import ConfigError, brief
from ...lm.parts.strict import nearest
from . import circuits, copying, mad, mad_recall, mqar, regression, state_tracking
from .task import Task

TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        circuits.ColouredObjects,
        circuits.IndirectObject,
        copying.Copy,
        copying.NgramLookup,
        copying.Phonebook,
        mad.Compression,
        mad_recall.FuzzyRecall,
        mad.Memorization,
        mad_recall.NoisyRecall,
        mad_recall.MadRecall,
        mad.SelectiveCopy,
        mqar.CompositionalMQAR,
        mqar.ForgettingMQAR,
        mqar.MQAR,
        regression.Regression,
        state_tracking.GroupWords,
        state_tracking.Parity,
    )
}


def parse(slice_: dict[str, Any]) -> Task:
    """{task: NAME, OPTION: VALUE ...} as a task. Raises ConfigError naming a wrong key and the nearest one."""
    options = dict(slice_)
    name = options.pop("task", None)
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"task: unknown task {brief(name)}; {nearest(str(name), TASKS)}")
    return TASKS[name].parse(options, where=name)
