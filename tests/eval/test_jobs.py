"""The queue of jobs: what ends, fails or dies is told as it does, and nothing is left running."""

import os
import sys
import time

import psutil
import pytest

from hybridlm.eval.jobs import Command, run_calls, run_commands
from hybridlm.tests.eval.replies import reply


def test_a_process_that_dies_costs_one_call():
    outcomes = {o.job: o for o in run_calls(reply, ["a", "die", "fail", "b", "c"], 2)}
    assert outcomes["die"].error == "its process died with exit code 9; out of memory?"
    assert outcomes["fail"].error == "ValueError: of no use"
    for job in "abc":
        assert outcomes[job].value[::2] == (job, "1")
        assert outcomes[job].value[1] != os.getpid()


@pytest.fixture
def command(tmp_path):
    """A program in Python, logged to a file of its number."""

    def command(job: tuple[int, str]) -> Command:
        return Command([sys.executable, "-c", f"import os, sys, time; {job[1]}"], tmp_path / f"{job[0]}.log")

    return command


def test_commands_end_in_their_own_order_with_their_codes_and_logs(command, tmp_path):
    go, told = tmp_path / "go", []
    wait = f"print('one'); [time.sleep(0.01) for _ in iter(lambda: os.path.exists({str(go)!r}), True)]"
    jobs = [(0, wait), (1, "print(os.environ['OMP_NUM_THREADS']); sys.exit(3)"), (2, "print('three')")]
    (tmp_path / "0.log").write_text("from before\n")
    for outcome in run_commands(command, jobs, 2):
        told.append((outcome.job[0], outcome.error))
        if len(told) == 2:
            go.touch()
    assert told == [(1, "ended with exit code 3"), (2, None), (0, None)]
    logs = [(tmp_path / f"{i}.log").read_text() for i in range(3)]
    assert logs == ["from before\none\n", "1\n", "three\n"]


def test_a_queue_that_is_closed_early_leaves_nothing_running(command, tmp_path):
    jobs = [(0, "time.sleep(60)"), (1, "pass"), (2, "print('never')")]
    outcomes = run_commands(command, jobs, 2)
    assert next(outcomes).job[0] == 1
    [left] = [child for child in psutil.Process().children() if "time.sleep(60)" in " ".join(child.cmdline())]
    outcomes.close()
    assert not left.is_running() and not (tmp_path / "2.log").exists()


def test_a_program_that_is_not_there_is_an_error_and_ends_the_others(tmp_path):
    jobs = [[sys.executable, "-c", "import time; time.sleep(60)"], ["no-such-program"]]
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        list(run_commands(lambda job: Command(job, tmp_path / "log"), jobs, 2))
    assert time.monotonic() - started < 30
