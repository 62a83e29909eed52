"""The output head: whether its weight is all of it, and its product with few rows, as decoding needs it."""

import torch
from torch import Tensor, nn

FEW = range(5, 16)
"""Rows for which PyTorch's product with a matrix that no cache holds takes two to three times as long as oneDNN's."""


def is_plain(module: nn.Module, hooks: bool = False) -> bool:
    """Whether `module(x)` is x times its weight and no more: an nn.Linear that nobody has wrapped, replaced or hooked.

    hooks: hooks do not count. What is put in its place by adapters, quantisation, parametrisations or FSDP2 has another
    type, and so has the weight of tensor parallelism and of weight-only quantisation.
    """
    if type(module) is not nn.Linear or module.bias is not None or "forward" in vars(module):
        return False
    if type(module.weight) not in (nn.Parameter, Tensor):
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return hooks or not hooked


def project(module: nn.Module, x: Tensor) -> Tensor:
    """module(x), by oneDNN where that is the faster one: few rows on a CPU, float32, no gradient."""
    if _few(x) and is_plain(module):
        return torch.ops.mkldnn._linear_pointwise(x, module.weight, None, "none", [], "")
    return module(x)


def _few(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # its sizes may be symbols
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() // x.shape[-1] in FEW
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
