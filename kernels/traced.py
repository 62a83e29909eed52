"""Operators as torch.compile and torch.export see them: one node each, whichever backend does the work in the end.

While a model is traced an operator calls `torch.ops.hybridlm.NAME`. Its fake kernel gives the results' shapes, whose
sizes may be symbols; when the traced program runs, its real one calls the operator, and "auto" is chosen then. The
gradient is a node too, `NAME_backward`, which runs the forward again: what a backend keeps for its backward pass is no
fixed list of tensors. Outside of tracing nobody comes here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .shared.sequences import Sequences, rows

LIBRARY = torch.library.Library("hybridlm", "FRAGMENT")
TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    float: "float",
    int: "int",
    bool: "bool",
    tuple[int, ...]: "SymInt[]",
    Sequences: "SymInt[]?",
}
WRITTEN = "state"  # the argument that a step updates in place

Call = Callable[[Any, str], Any]
"""run(arguments, backend)"""


def define(schema: str, run: Callable[..., Any], blank: Callable[..., Any]) -> Any:
    """A traced op: `run` does its work, `blank` gives results of the right shapes with nothing in them."""
    LIBRARY.define(schema)
    name = schema.partition("(")[0]
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hybridlm::{name}", blank, lib=LIBRARY)
    return getattr(torch.ops.hybridlm, name).default


class Signature:
    """An operator's arguments, a NamedTuple of `TYPES`, as a flat list that a torch op can take."""

    def __init__(self, arguments: type) -> None:
        self.make = arguments
        self.fields = {name: kind for name, kind in get_type_hints(arguments).items() if name in arguments._fields}
        self.names = [name for name, kind in self.fields.items() if kind in (Tensor, Tensor | None)]

    def schema(self) -> str:
        written = {name: "Tensor(a!)" for name in self.names if name == WRITTEN}
        return ", ".join(f"{written.get(name, TYPES[kind])} {name}" for name, kind in self.fields.items())

    def results(self) -> str:
        """One tensor, or an output and a final state, as `blank` says."""
        return "Tensor" if get_type_hints(self.make.blank)["return"] is Tensor else "(Tensor, Tensor)"

    def flat(self, x: Any) -> list[Any]:
        """Sequences are their bounds, None where they are rows."""
        return [value.bounds if isinstance(value, Sequences) else value for value in x]

    def whole(self, flat: Sequence[Any]) -> Any:
        """The arguments again."""
        given = dict(zip(self.fields, flat, strict=True))
        for name, kind in self.fields.items():
            if kind is Sequences:
                batch, tokens = flat[0].shape[:2]
                given[name] = rows(batch, tokens) if given[name] is None else _documents(tuple(given[name]))
            elif kind == tuple[int, ...]:
                given[name] = tuple(given[name])
        return self.make(**given)

    def blank(self, *flat: Any) -> Any:
        """The results with nothing in them yet; behind the arguments stands the backend."""
        return self.whole(flat[:-1]).blank()

    def tensors(self, flat: Sequence[Any]) -> dict[str, Tensor]:
        """Those that are given, by name."""
        named = zip(self.fields, flat, strict=False)
        return {name: value for name, value in named if name in self.names and value is not None}


@functools.lru_cache(maxsize=4)
def _documents(bounds: tuple[int, ...]) -> Sequences:
    """One value for all layers of a call, which share its tables."""
    return Sequences(1, bounds[-1], bounds)


def trace_step(name: str, arguments: type, run: Call) -> Call:
    """How a step is called while it is traced; `run` is how it is called else."""
    signature = Signature(arguments)

    def real(*flat: Any) -> Tensor:
        return run(signature.whole(flat[:-1]), flat[-1])

    op = define(f"{name}({signature.schema()}, str backend) -> Tensor", real, signature.blank)
    return lambda x, backend: op(*signature.flat(x), backend)


def trace_operator(name: str, arguments: type, run: Call) -> Call:
    """The same for an operator, whose results are a tensor, or that and the final state, and for its gradient."""
    signature = Signature(arguments)

    results = signature.results()
    n_results = results.count("Tensor")

    def forward(*flat: Any) -> Any:
        found = run(signature.whole(flat[:-1]), flat[-1])
        return found.contiguous() if isinstance(found, Tensor) else tuple(x.contiguous() for x in found)

    def gradients(*flat: Any) -> list[Tensor]:
        (*given, backend), dresults = flat[:-n_results], flat[-n_results:]
        with torch.enable_grad():
            leaves = {name: x.detach().requires_grad_() for name, x in signature.tensors(given).items()}
            found = run(signature.whole(given)._replace(**leaves), backend)
        return [x.contiguous() for x in torch.autograd.grad(found, tuple(leaves.values()), dresults)]

    def blank_gradients(*flat: Any) -> list[Tensor]:
        given = signature.tensors(flat[: -1 - n_results]).values()
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given]

    op = define(f"{name}({signature.schema()}, str backend) -> {results}", forward, signature.blank)
    dresults = ", ".join(f"Tensor dresult{i}" for i in range(n_results))
    backward = define(
        f"{name}_backward({signature.schema()}, str backend, {dresults}) -> Tensor[]",
        gradients,
        blank_gradients,
    )

    def save(ctx: Any, inputs: tuple, output: tuple) -> None:
        given = signature.tensors(inputs)
        ctx.save_for_backward(*given.values())
        ctx.given, ctx.others = list(given), [None if isinstance(x, Tensor) else x for x in inputs]

    def differentiate(ctx: Any, *dresults: Tensor) -> tuple[Tensor | None, ...]:
        saved = dict(zip(ctx.given, ctx.saved_tensors, strict=True))
        names = [*signature.fields, "backend"]
        flat = [saved.get(name, other) for name, other in zip(names, ctx.others, strict=True)]
        grads = dict(zip(ctx.given, backward(*flat, *dresults), strict=True))
        return tuple(grads.get(name) for name in names)

    torch.library.register_autograd(op, differentiate, setup_context=save, lib=LIBRARY)
    return lambda x, backend: op(*signature.flat(x), backend)
