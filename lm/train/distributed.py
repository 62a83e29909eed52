"""The process group: a launcher's if there is one, else this process alone."""

import atexit
import contextlib
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist


def launched() -> bool:
    """Whether a launcher says that this process is one of several."""
    return processes() > 1


def processes() -> int:
    """How many a launcher says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_process_group() -> None:
    """Join the group that torchrun or the deepspeed launcher describes in the environment, or form a group of one.

    Does nothing when a group exists. A group of one lives in this process's memory: it needs no port, so any number of
    runs can share a machine.
    """
    if dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed refuses to start without this variable
    if cuda:
        torch.cuda.set_device(local_rank)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    atexit.register(_stop)


def _stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    _wait_for_gloo()


def _wait_for_gloo(limit: float = 10.0) -> None:
    """Return when gloo's worker threads have nothing left to do, at the latest after `limit` seconds.

    A worker drops a collective's tensors after the result is there, so possibly later than the program's last line, and
    takes the GIL for it. Before Python 3.14 that aborts a process whose interpreter is shutting down
    (https://github.com/pytorch/pytorch/issues/190489). Destroying the group would join the workers if DeepSpeed and
    torch.distributed.nn did not keep references to it. Looks at /proc, so it waits on Linux alone.
    """
    end, before = time.monotonic() + limit, None
    while time.monotonic() < end:
        now = _gloo_threads()
        # asleep since the last look, with the GIL free in between: waiting for work, not for the GIL or a processor
        if now == before and all("State:\tS" in status for status in now):
            return
        before = now
        time.sleep(0.005)


def _gloo_threads() -> list[str]:
    """What Linux says of each worker: its state, and how often it has been switched to and from."""
    found = []
    for path in sorted(Path("/proc/self/task").glob("*/status")):
        with contextlib.suppress(OSError):  # other threads may end meanwhile
            status = path.read_text()
            if status.startswith("Name:\tpt_gloo"):
                found.append(status)
    return found
