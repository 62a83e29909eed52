"""The end of a process that has used the group."""

import os
import subprocess
import sys

import pytest

# The worker threads share a processor with the main thread and get it only when that rests, often for the first time
# when the interpreter is shutting down. The references to the group that DeepSpeed keeps are played by a leaked one.
LATE_WORKERS = """
import ctypes, os, sys, time
import torch, torch.distributed as dist
import hybridlm.lm.train.distributed as module


class Rest:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)


module.start_process_group()
ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
rest = Rest()
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
    with open(f"/proc/self/task/{thread}/comm") as name:
        if name.read().startswith("pt_gloo"):
            os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
sys.setswitchinterval(60)
x = torch.zeros(1)
dist.broadcast(x, src=0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs Linux")
def test_a_process_ends_well_however_late_the_workers_are():
    """Without _wait_for_gloo about two of five such processes abort."""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", LATE_WORKERS], stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
