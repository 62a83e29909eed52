"""What a worker process of the tests is asked to do; apart, so that it starts without importing them."""

import os


def reply(call: str) -> tuple[str, int, str]:
    """Work, fail or die."""
    if call == "die":
        os._exit(9)
    if call == "fail":
        raise ValueError("of no use")
    return call, os.getpid(), os.environ["OMP_NUM_THREADS"]
