"""The models under test: every registered mixer, and a hybrid of all of them."""

from functools import cache

import pytest
from lm_eval.api.instance import Instance

from hybridlm.lm import HybridLM
from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.contracts.harness import Builder


@cache
def small(layers: tuple[str, ...]) -> HybridLM:
    return Builder(layers)(d_model=32)


@pytest.fixture(params=[*MIXERS, "hybrid"])
def any_model(request) -> HybridLM:
    """Two layers of one mixer, or one layer of each; a mixer registered tomorrow is one more. Vocabulary 97."""
    return small(tuple(MIXERS) if request.param == "hybrid" else (request.param,))


@pytest.fixture
def requests():
    """lm-eval's form of requests: `requests(kind, arguments)`."""

    def make(kind: str, arguments: list[tuple], task: str = "t") -> list[Instance]:
        return [Instance(kind, {}, args, i, metadata=(task, i, 1)) for i, args in enumerate(arguments)]  # type: ignore

    return make
