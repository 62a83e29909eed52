"""Something to run: our form of a case or a peer's, as a forward and a backward step on given tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cases import CASES, Shape
from .hardware import TARGETS
from .peers import PEERS, rank
from .pretend import PretendedGPU

OURS = "hybridlm"


@dataclass(frozen=True)
class Subject:
    """`name`: OURS or one of PEERS."""

    name: str
    case_name: str

    def passes(self, shape: Shape, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """Forward and backward on fresh inputs; backward does nothing for a decoding step and needs forward first."""
        case = CASES[self.case_name]
        x = case.inputs(shape, torch.device(device))
        if self.name != OURS:
            x = {name: tensor for name, tensor in x.items() if name not in PEERS[self.name].without}
        wanted = () if case.step else tuple(tensor.requires_grad_() for tensor in x.values())
        done: list[torch.Tensor] = []
        call = case.call if self.name == OURS else PEERS[self.name].call

        def forward() -> None:
            done[:] = [call(x)]

        def backward() -> None:
            if wanted:
                torch.autograd.grad(done, wanted, [torch.empty_like(done[0])])

        return forward, backward


def pretend(target: str, shapes: list[list[int]], heads: int = 1) -> PretendedGPU:
    """A GPU for our kernels and a peer's; autotuners take the `rank`ed configuration for the shapes' head dim.

    heads: batch x heads that the one head that is run stands for. Blocks are chosen by whether programs fill the
    device, so one head then sees its share of it.
    """
    limit = max(max(shape[3:]) for shape in shapes)
    gpu = PretendedGPU(TARGETS[target], lambda config: rank(config, limit))
    from ...kernels.shared import checks, triton_common

    triton_common.multiprocessors = lambda device: gpu.target.processors / heads
    checks.on_host = lambda x: False  # as on a GPU
    for case in CASES.values():
        case.allow_anywhere()
    return gpu
