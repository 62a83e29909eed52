"""Our Triton kernels, really compiled and counted, stay within what is recorded: no spills, few launches and bytes."""

import pytest

from hybridlm.tools.kernel_report import budgets
from hybridlm.tools.kernel_report.cases import CASES, check_covered
from hybridlm.tools.kernel_report.measure import measure
from hybridlm.tools.kernel_report.report import DEFAULT_SHAPES, check_launched


def within_budget(target: str) -> None:
    results = measure(
        CASES.values(),
        DEFAULT_SHAPES[:1],
        with_peers=False,
        build_for=[target],
        count_for=[target],
        host_repeats=0,
    )
    check_launched(results)
    assert budgets.exceeded(results, budgets.load()) == []


def test_every_operator_with_kernels_has_a_case():
    check_covered()


def test_kernels_stay_within_budget_on_hopper():
    within_budget("sm_90")


@pytest.mark.slow
def test_kernels_stay_within_budget_on_ampere():
    within_budget("sm_80")
