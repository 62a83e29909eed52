"""One operator: its public function, its step for a single token, its FLOPs, and the backends that do the work.

An operator's folder declares it with the decorators `operator` and `step`. A backend is written once, as a function
of the folder's `Arguments`, which hold what the public function was given, checked and with its defaults filled in.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from .backend import POLICIES, Run, choose, declared, unavailable
from .traced import trace_operator, trace_step

P = ParamSpec("P")  # of the public function
S = ParamSpec("S")  # of its step
F = ParamSpec("F")  # of its FLOPs
R = TypeVar("R")

OPERATORS: dict[str, "Function"] = {}
"""Every operator and every step by name."""


class StepArguments(Protocol):
    """A step's arguments, checked."""

    @property
    def device(self) -> torch.device: ...

    def blank(self) -> Any:
        """The results with nothing in them yet."""


class Arguments(StepArguments, Protocol):
    """An operator's arguments, checked but for their values."""

    def without_tokens(self) -> Any:
        """The operator's results if there is no token to work on, else None."""

    def check_values(self) -> None:
        """Raises ValueError on values out of range, where looking at them is free."""


class Function(Generic[P, R]):
    """A public function with backends. Calling it is calling that function, whose name, signature and text it has."""

    def __init__(self, function: Callable[P, R], backends: dict[str, Run | str]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.name = function.__name__
        self.backends = declared(function.__globals__["__package__"], backends)  # the folder's modules
        OPERATORS[self.name] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> str:
        return self.name  # copied and pickled by name, as a function is

    def choose(self, backend: str, device: torch.device) -> Run:
        """The implementation that `backend` means. Raises ValueError or BackendUnavailable."""
        return choose(self.name, self.backends, backend, device)


class Step(Function[P, Tensor]):
    """One token for each of N sequences, without autograd; the state is updated in place."""

    def __init__(self, function: Callable[P, Tensor], arguments: type, backends: dict[str, Run | str]) -> None:
        super().__init__(function, backends)
        self._traced = trace_step(self.name, arguments, self.run)

    def run(self, x: StepArguments, backend: str) -> Tensor:
        """By the backend asked for, whatever autocast and autograd are set to outside."""
        if torch.compiler.is_compiling():
            with torch.no_grad():
                return self._traced(x, backend)
        run = self.choose(backend, x.device)
        with torch.no_grad(), without_autocast(x.device):
            return run(x)


class Operator(Function[P, R], Generic[P, R, S, F]):
    """An operator over whole sequences. `flops`: its forward matmul FLOPs per token and head."""

    def __init__(
        self,
        function: Callable[P, R],
        arguments: type,
        backends: dict[str, Run | str],
        step: Step[S],
        flops: Callable[F, float],
    ) -> None:
        super().__init__(function, backends)
        self.step = step
        self.flops = flops
        self._traced = trace_operator(self.name, arguments, self.run)

    def run(self, x: Arguments, backend: str) -> R:
        """By the backend asked for, with its final state always; an operator sets its own precision, not autocast."""
        if torch.compiler.is_compiling():
            return self._traced(x, backend)
        run = self.choose(backend, x.device)
        nothing = x.without_tokens()
        if nothing is not None:
            return nothing
        x.check_values()
        with without_autocast(x.device):
            return run(x)


Recurrence = Operator[..., tuple[Tensor, Tensor | None], ..., ...]
"""An operator that returns its output and, if asked for, its final state."""


def step(*, arguments: type, reference: Run, **backends: Run | str) -> Callable[[Callable[P, Tensor]], Step[P]]:
    """Decorates the public function of a step. A backend is `run(arguments)`, or "module:name" in the same folder for
    a module that is to be imported at the first call; `arguments` is what these are, a NamedTuple."""
    return lambda function: Step(function, arguments, {"reference": reference, **backends})


def operator(
    *, arguments: type, step: Step[S], flops: Callable[F, float], reference: Run, **backends: Run | str
) -> Callable[[Callable[P, R]], Operator[P, R, S, F]]:
    """Decorates the public function of an operator; arguments and backends as for `step`."""
    return lambda function: Operator(function, arguments, {"reference": reference, **backends}, step, flops)


def operators() -> tuple[str, ...]:
    """Names of all operators, their steps among them."""
    return tuple(sorted(OPERATORS))


def available_backends(op: str, device: torch.device | None = None) -> dict[str, str | None]:
    """For each backend None if it runs on the device (default: a GPU if there is one), else the reason and the fix."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: unavailable(op, OPERATORS[op].backends, name, device) for name in POLICIES}


_AS_IT_IS = nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Entered at every call: torch.autocast itself takes as long as a small step, so only where there is one to end."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):  # meta knows no autocast
        return _AS_IT_IS
    return torch.autocast(device.type, enabled=False)
