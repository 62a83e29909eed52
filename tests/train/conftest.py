from collections.abc import Callable, Iterator

import pytest
import torch

from hybridlm.lm.train.engine import Engine
from hybridlm.tests.train.worker import OPTIM, TOTAL, build_model, train_config


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    """Starts engines on one thread, by default of the tests' small hybrid, and closes them after the test."""
    torch.set_num_threads(1)
    engines: list[Engine] = []

    def start(model=None, optim=OPTIM, **train) -> Engine:
        engines.append(Engine(build_model() if model is None else model, optim, train_config(**train), TOTAL))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
