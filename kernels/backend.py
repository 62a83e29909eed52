"""Which implementation of an operator runs.

An operator registers its backends here; `hybridlm doctor` lists them. `backend="auto"` is the fastest one registered
for the tensors' device. Neither "auto" nor an explicit name ever falls back: an unusable choice raises with its reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

NAMES = ("reference", "chunked", "native", "triton", "fla")

Predicate = Callable[[torch.device], str | None]


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run here; the message says why and what to do."""


@dataclass(frozen=True)
class Backend:
    """`unavailable(device)` is None where the backend runs, else the reason and the fix. `auto_on`: device types on
    which "auto" takes this backend rather than one registered earlier; None means every device, () none."""

    run: Callable[..., Any]
    unavailable: Predicate
    auto_on: tuple[str, ...] | None


_registry: dict[str, dict[str, Backend]] = {}


def _anywhere(device: torch.device) -> None:
    return None


def register(
    op: str,
    name: str,
    run: Callable[..., Any],
    *,
    unavailable: Predicate = _anywhere,
    auto_on: tuple[str, ...] | None = (),
) -> None:
    """Add a backend to an operator, slower ones first."""
    if name not in NAMES:
        raise ValueError(f"backend name is {name!r}; allowed: {', '.join(NAMES)}")
    _registry.setdefault(op, {})[name] = Backend(run, unavailable, auto_on)


def operators() -> tuple[str, ...]:
    """Names of all registered operators."""
    return tuple(sorted(_registry))


def available_backends(op: str, device: torch.device | None = None) -> dict[str, str | None]:
    """For each backend None if it runs on the device (default: a GPU if there is one), else the reason and the fix."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: _reason(op, name, device) for name in NAMES}


def choose(op: str, name: str, device: torch.device) -> Callable[..., Any]:
    """The implementation to call. Raises ValueError for an unknown name, BackendUnavailable for one that cannot run."""
    if name == "auto":
        name = [n for n, backend in _registry[op].items() if backend.auto_on is None or device.type in backend.auto_on][
            -1
        ]
    elif name not in NAMES:
        raise ValueError(f"backend is {name!r}; allowed: auto, {', '.join(NAMES)}")
    reason = _reason(op, name, device)
    if reason:
        raise BackendUnavailable(f'{op}: backend "{name}" is unavailable: {reason}')
    return _registry[op][name].run


def _reason(op: str, name: str, device: torch.device) -> str | None:
    if name not in _registry[op]:
        return f'{op} has no {name} implementation; use backend="auto"'
    return _registry[op][name].unavailable(device)
