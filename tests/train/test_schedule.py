"""Learning rates against values worked out by hand, and what every schedule must satisfy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.recipe.train import OptimConfig, ScheduleConfig
from hybridlm.lm.train.schedule import learning_rate


def rates(total: int, **schedule) -> list[float]:
    optim = OptimConfig(lr=1.0, schedule=ScheduleConfig(**schedule))
    return [learning_rate(step, total, optim) for step in range(total)]


def test_wsd_by_hand():
    found = rates(10, kind="wsd", warmup=2, decay=4, final=0.2)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_fractions_are_shares_of_the_run():
    assert rates(10, warmup=0.2, decay=0.4) == rates(10, warmup=2, decay=4)


def test_cosine_by_hand():
    found = rates(6, kind="cosine", warmup=2, final=0.1)
    after = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3, 4)]
    assert found == pytest.approx([0.5, 1, *after])
    assert found[-1] == pytest.approx(0.1)


def test_constant_warms_up_and_stays():
    assert rates(5, kind="constant", warmup=2) == pytest.approx([0.5, 1, 1, 1, 1])


def test_a_decay_to_zero_ends_at_zero():
    assert rates(4, kind="wsd", warmup=0, decay=2, final=0) == pytest.approx([1, 1, 0.5, 0])


@given(
    st.sampled_from(["wsd", "cosine", "constant"]),
    st.integers(1, 300),
    st.floats(0, 0.5),
    st.floats(0, 0.45),
    st.floats(0, 1),
)
def test_every_schedule_rises_then_falls_within_bounds(kind, total, warmup, decay, final):
    found = rates(total, kind=kind, warmup=warmup, decay=decay, final=final)
    peak = found.index(max(found))
    assert all(0 <= lr <= 1 + 1e-12 for lr in found)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_phases_that_do_not_fit_name_themselves():
    with pytest.raises(ConfigError, match=r"warmup of 60 and decay of 50 steps do not fit into train.steps=100"):
        rates(100, warmup=60, decay=50)
    with pytest.raises(ConfigError, match=r"optim.schedule.warmup: 1.5 is neither"):
        rates(100, warmup=1.5)
    assert len(rates(100, kind="cosine", warmup=60, decay=50)) == 100  # decay is wsd's alone


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match="outside the run's 10 steps"):
        learning_rate(step, 10, OptimConfig())
