"""What the operators check of their arguments before any backend runs: errors that name the argument and the fix."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

CHUNK_SIZES = (16, 32, 64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """What states are kept in for inputs of this dtype: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def check_shape(name: str, x: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if x.shape != expected:
        raise ValueError(f"{name} has shape {list(x.shape)}; allowed: {list(expected)}, {meaning}")


def check_dtypes(**tensors: Tensor) -> None:
    """All of one floating dtype."""
    dtypes = [x.dtype for x in tensors.values()]
    if not dtypes[0].is_floating_point or len(set(dtypes)) > 1:
        names = ", ".join(tensors)
        found = ", ".join(map(str, dtypes))
        raise ValueError(f"{names} are {found}; allowed: one floating dtype, cast them to {list(tensors)[-1]}'s")


def check_heads(n_heads: int, n_value_heads: int) -> None:
    if n_heads == 0 or n_value_heads == 0 or n_value_heads % n_heads:
        found = f"v has {n_value_heads} heads and q has {n_heads}"
        raise ValueError(f"{found}; allowed: a positive multiple of q's, value heads share keys")


def check_gate(name: str, gate: Tensor, expected: tuple[int, ...], meaning: str, v: Tensor, v_name: str = "v") -> None:
    """The shape, and float32 or the dtype of the values it weighs."""
    check_shape(name, gate, expected, meaning)
    if gate.dtype not in (torch.float32, v.dtype):
        raise ValueError(f"{name} is {gate.dtype}; allowed: torch.float32 or {v_name}'s {v.dtype}")


def check_chunk_size(chunk_size: int) -> None:
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_size is {chunk_size}; allowed: {', '.join(map(str, CHUNK_SIZES))}")


def check_state(name: str, state: Tensor, expected: tuple[int, ...], meaning: str, dtype: torch.dtype) -> None:
    """The shape, and the dtype that goes with inputs of `dtype`."""
    check_shape(name, state, expected, meaning)
    if state.dtype != state_dtype(dtype):
        raise ValueError(f"{name} is {state.dtype}; allowed: {state_dtype(dtype)} for {dtype} inputs")


def check_written_state(state: Tensor, expected: tuple[int, ...], meaning: str, dtype: torch.dtype) -> None:
    """A state that a single step updates in place."""
    check_state("state", state, expected, meaning, dtype)
    if not state.is_contiguous():
        raise ValueError("state is not contiguous; allowed: contiguous, it is updated in place; use state.contiguous()")
    if state.requires_grad:
        raise ValueError("state requires grad; allowed: no gradient, a step updates it in place; use state.detach()")


def no_tokens_state(initial_state: Tensor | None, shape: tuple[int, ...], v: Tensor) -> Tensor:
    """The final state of sequences without a token."""
    return v.new_zeros(shape, dtype=state_dtype(v.dtype)) if initial_state is None else initial_state.clone()


def check_log_decay(g: Tensor) -> None:
    """g <= 0, where values can be looked at. NaN passes: what a diverging run does about it is not for here."""
    if not on_host(g):
        return
    high = g.detach().amax().item()
    if high > 0:
        reason = "allowed: <= 0, it is the log of a decay; e.g. torch.nn.functional.logsigmoid(g)"
        raise ValueError(f"g has values up to {high:.4g}; {reason}")


def check_beta(beta: Tensor) -> None:
    """0 <= beta <= 2, the range in which I - beta k k^T with a unit key does not enlarge the state. NaN passes."""
    if not on_host(beta):
        return
    low, high = (x.item() for x in beta.detach().aminmax())
    if low < 0 or high > 2:
        reason = "allowed: 0 to 2, outside the state grows without bound; e.g. torch.sigmoid(beta)"
        raise ValueError(f"beta has values from {low:.4g} to {high:.4g}; {reason}")


def on_host(x: Tensor) -> bool:
    """Whether values can be looked at for free. On a GPU that would wait for the device, and an assertion in its queue
    would launch more kernels than the operators themselves: the Triton kernels make NaN of such values instead."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is not FakeTensor
