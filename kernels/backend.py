"""Which implementation of an operator runs.

An operator registers its backends here; `hybridlm doctor` lists them. `backend="auto"` is the fastest one registered
for the tensors' device; only backends registered as optional (built on demand) are passed over where they are missing.
Neither "auto" nor an explicit name ever falls back otherwise: an unusable choice raises with its reason.
"""

import importlib
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
    """`run`: the implementation, or "module:name" below `kernels`, imported at the first call. `unavailable(device)` is
    None where the backend runs, else the reason and the fix. `auto_on`: device types on which "auto" takes this backend
    rather than one registered earlier; None means every device, () none. `optional`: "auto" does without if it must."""

    run: Callable[..., Any] | str
    unavailable: Predicate
    auto_on: tuple[str, ...] | None
    optional: bool

    def load(self) -> Callable[..., Any]:
        if not isinstance(self.run, str):
            return self.run
        module, _, name = self.run.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


_registry: dict[str, dict[str, Backend]] = {}


def _anywhere(device: torch.device) -> None:
    return None


def register(
    op: str,
    name: str,
    run: Callable[..., Any] | str,
    *,
    unavailable: Predicate = _anywhere,
    auto_on: tuple[str, ...] | None = (),
    optional: bool = False,
) -> None:
    """Add a backend to an operator, slower ones first."""
    if name not in NAMES:
        raise ValueError(f"backend name is {name!r}; allowed: {', '.join(NAMES)}")
    _registry.setdefault(op, {})[name] = Backend(run, unavailable, auto_on, optional)


def operators() -> tuple[str, ...]:
    """Names of all registered operators."""
    return tuple(sorted(_registry))


def registered(op: str) -> dict[str, Backend]:
    """An operator's backends by name, slower ones first."""
    return dict(_registry[op])


def available_backends(op: str, device: torch.device | None = None) -> dict[str, str | None]:
    """For each backend None if it runs on the device (default: a GPU if there is one), else the reason and the fix."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: _reason(op, name, device) for name in NAMES}


def choose(op: str, name: str, device: torch.device) -> Callable[..., Any]:
    """The implementation to call. Raises ValueError for an unknown name, BackendUnavailable for one that cannot run."""
    if name == "auto":
        name = _fastest(op, device)
    elif name not in NAMES:
        raise ValueError(f"backend is {name!r}; allowed: auto, {', '.join(NAMES)}")
    reason = _reason(op, name, device)
    if reason:
        raise BackendUnavailable(f'{op}: backend "{name}" is unavailable: {reason}')
    return _registry[op][name].load()


def _fastest(op: str, device: torch.device) -> str:
    """The last one registered for the device."""
    for name, backend in reversed(_registry[op].items()):
        wanted = backend.auto_on is None or device.type in backend.auto_on
        if wanted and not (backend.optional and backend.unavailable(device)):
            return name
    raise BackendUnavailable(f"{op}: no backend is registered for {device.type}; allowed devices: cpu, cuda")


def _reason(op: str, name: str, device: torch.device) -> str | None:
    if name not in _registry[op]:
        return f'{op} has no {name} implementation; use backend="auto"'
    return _registry[op][name].unavailable(device)
