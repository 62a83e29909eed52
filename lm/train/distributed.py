"""The process group: a launcher's if there is one, else this process alone."""

import atexit
import os

import torch
import torch.distributed as dist


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
