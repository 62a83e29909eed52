"""Two processes of one launch, started by hand: a launcher would end the second as soon as the first has failed."""

import os
import socket
import subprocess
import sys
import time
from typing import NamedTuple


class Ended(NamedTuple):
    """How one of them ended; `after`: seconds since the first that ended."""

    code: int
    out: str
    error: str
    after: float

    @property
    def line(self) -> str:
        """The last one on stderr; those before it are progress bars."""
        return self.error.splitlines()[-1]


def run_pair(*command: str, timeout: float = 240) -> list[Ended]:
    """Run `python COMMAND` as ranks 0 and 1; both are killed after `timeout` seconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pair = []
    for rank in "01":
        env = {**os.environ, **launch, "RANK": rank, "LOCAL_RANK": rank}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        pair.append(subprocess.Popen([sys.executable, *command], env=env, **pipes))
    ends: list[float] = [0.0, 0.0]
    deadline = time.monotonic() + timeout
    while not all(ends) and time.monotonic() < deadline:
        for rank, process in enumerate(pair):
            if not ends[rank] and process.poll() is not None:
                ends[rank] = time.monotonic()
        time.sleep(0.05)
    for process in pair:
        process.kill()
    told = [process.communicate() for process in pair]
    assert all(ends), f"one waits for ever: {told}"
    return [
        Ended(process.returncode, *texts, end - min(ends)) for process, texts, end in zip(pair, told, ends, strict=True)
    ]
