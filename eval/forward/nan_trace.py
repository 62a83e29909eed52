"""Where a model's first NaN comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...lm.model import HybridLM


@torch.no_grad()
def first_nan(model: HybridLM, tokens: Sequence[int]) -> str:
    """The first module that gives NaN on `tokens`, and at which token: "layer 3 (gated_deltanet), token 17".

    Runs the sequence by itself, nothing shared; "no layer when run alone" if it has no NaN there.
    """
    found: list[str] = []

    def watch(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            y = output if isinstance(output, Tensor) else getattr(output, "y", None)
            if not found and isinstance(y, Tensor) and bool(y.isnan().any()):
                token = int(y[0].isnan().flatten(1).any(-1).nonzero()[0, 0])
                found.append(f"{name}, token {token}")

        return hook

    modules: list[tuple[str, nn.Module]] = [("embedding", model.embed)]
    for i, block in enumerate(model.layers()):
        modules += [(f"mixer of layer {i} ({block.kind})", block.mixer), (f"layer {i} ({block.kind})", block)]
    modules += [("final norm", model.norm), ("output head", model.lm_head)]
    hooks = [module.register_forward_hook(watch(name)) for name, module in modules]
    try:
        model(torch.tensor([tokens], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "no layer when run alone"
