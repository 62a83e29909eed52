"""Which implementation of an operator runs.

`backend="auto"` is the fastest one for the tensors' device; it passes over only what is built on demand and missing.
Neither "auto" nor an explicit name ever falls back otherwise: an unusable choice raises with its reason.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from .availability import fla_unavailable, native_unavailable, triton_unavailable

Run = Callable[[Any], Any]
"""What a backend is: it takes the operator's checked arguments and returns the operator's results."""


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run here; the message says why and what to do."""


def _anywhere(device: torch.device) -> None:
    return None


@dataclass(frozen=True)
class Policy:
    """Where a backend runs. `unavailable(device)` is None where it does, else the reason and the fix. `auto_on`: device
    types on which "auto" takes it, None means every device. `optional`: built on demand, "auto" does without it."""

    unavailable: Callable[[torch.device], str | None] = _anywhere
    auto_on: tuple[str, ...] | None = None
    optional: bool = False

    def takes(self, device: torch.device) -> bool:
        """Whether "auto" may choose it."""
        wanted = self.auto_on is None or device.type in self.auto_on
        return wanted and not (self.optional and self.unavailable(device))


POLICIES = {  # slower ones first: "auto" takes the last that it may
    "reference": Policy(),
    "chunked": Policy(),
    "native": Policy(native_unavailable, auto_on=("cpu",), optional=True),
    "triton": Policy(triton_unavailable, auto_on=("cuda",)),
    "fla": Policy(fla_unavailable, auto_on=()),
}


@dataclass(frozen=True)
class Backend:
    """`run`: the implementation, or "package.module:name", imported at the first call."""

    run: Run | str
    policy: Policy

    @cached_property
    def function(self) -> Run:
        return pkgutil.resolve_name(self.run) if isinstance(self.run, str) else self.run


def declared(package: str, runs: Mapping[str, Run | str]) -> dict[str, Backend]:
    """Backends by name, slower ones first. A string "module:name" is a function of a module in `package`."""
    unknown = runs.keys() - POLICIES.keys()
    if unknown:
        raise ValueError(f"backend name is {min(unknown)!r}; allowed: {', '.join(POLICIES)}")
    found = {name: runs[name] for name in POLICIES if name in runs}
    return {
        name: Backend(f"{package}.{run}" if isinstance(run, str) else run, POLICIES[name])
        for name, run in found.items()
    }


def choose(op: str, backends: dict[str, Backend], name: str, device: torch.device) -> Run:
    """The implementation to call. Raises ValueError for an unknown name, BackendUnavailable for one that cannot run."""
    if name == "auto":
        name = next(known for known in reversed(backends) if backends[known].policy.takes(device))
    elif name not in POLICIES:
        raise ValueError(f"backend is {name!r}; allowed: auto, {', '.join(POLICIES)}")
    reason = unavailable(op, backends, name, device)
    if reason:
        raise BackendUnavailable(f'{op}: backend "{name}" is unavailable: {reason}')
    return backends[name].function


def unavailable(op: str, backends: dict[str, Backend], name: str, device: torch.device) -> str | None:
    """None if the backend runs on the device, else the reason and the fix."""
    if name not in backends:
        return f'{op} has no {name} implementation; use backend="auto"'
    return backends[name].policy.unavailable(device)
