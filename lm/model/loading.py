"""The model that a run folder holds, where it is going to be used."""

import torch

from ..run import Run
from .decoder import HybridLM


def load_run(run: Run, device: str | torch.device | None = None) -> HybridLM:
    """The model with the weights of the newest checkpoint, in evaluation mode; on the GPU if there is one."""
    return HybridLM.from_run(run, device or ("cuda" if torch.cuda.is_available() else "cpu"))
