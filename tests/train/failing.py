"""`hybridlm train` in a process of which one part fails on one rank.

python -m hybridlm.tests.train.failing PART RECIPE [KEY=VALUE]...
"""

import errno
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from hybridlm.lm.parts.errors import ConfigError, DataError, NaNError
from hybridlm.tools.cli import main

TRAIN, TOOLS = "hybridlm.lm.train", "hybridlm.tools"


def failing(part: Callable[..., Any], error: Exception, rank: int) -> Callable[..., Any]:
    """`part`, which raises `error` on this rank."""

    def call(*given: Any, **named: Any) -> Any:
        if os.environ["RANK"] == str(rank):
            raise error
        return part(*given, **named)

    return call


PARTS = {
    "hook": ("hybridlm.eval.measurement.measured", NaNError("the model gives NaN; check its weights"), 0),
    "bug in a hook": ("hybridlm.eval.measurement.measured", KeyError("nowhere"), 0),
    "preparation": (f"{TOOLS}.pretrain.prepare_all", ConfigError("eval.tasks: task 'pica': unknown"), 0),
    "data": (f"{TOOLS}.pretrain.prepare", DataError("data: no network; run it again"), 1),
    "disk": (f"{TRAIN}.checkpoint.save_file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 0),
    "log": (f"{TRAIN}.telemetry.append_records", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl"), 0),
    "checkpoint of one rank": (f"{TRAIN}.checkpoint._check", ConfigError("a checkpoint of another architecture"), 1),
    "validation": (f"{TRAIN}.loop.Trainer._score", NaNError("the model gives NaN; check its weights"), 0),
}

if __name__ == "__main__":
    part, *arguments = sys.argv[1:]
    sys.argv = ["hybridlm", "train", *arguments]
    place, error, rank = PARTS[part]
    with mock.patch(place, failing(pkgutil.resolve_name(place), error, rank)):
        main()
