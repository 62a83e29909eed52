"""flash-linear-attention's kernels, called as its users call them, on the inputs of `cases`."""

import importlib
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Peer:
    """`function` in `module` of fla.ops; `rename`: its names for our arguments; `without`: those it does not know."""

    module: str
    function: str
    rename: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    state: bool = True  # it has a final state to be asked for

    def call(self, x: dict[str, Tensor]) -> Tensor:
        """The output, the final state being asked for. With a `state` the inputs are one token: [N, ...], no T."""
        op = getattr(importlib.import_module(f"fla.ops.{self.module}"), self.function)
        if "state" in x:
            x = {name: value if name == "state" else value[:, None] for name, value in x.items()}
        renamed = {self.rename.get(name, name): value for name, value in x.items()}
        return op(**renamed, output_final_state=True)[0] if self.state else op(**renamed)


_STATE = {"state": "initial_state"}

PEERS = {
    "chunk_gated_delta_rule": Peer("gated_delta_rule", "chunk_gated_delta_rule"),
    "chunk_gla": Peer("gla", "chunk_gla"),
    "chunk_simple_gla": Peer("simple_gla", "chunk_simple_gla"),
    "parallel_attn": Peer("attn", "parallel_attn", without=("gate",), state=False),
    "chunk_hgrn": Peer("hgrn", "chunk_hgrn"),
    "fused_recurrent_hgrn": Peer("hgrn", "fused_recurrent_hgrn"),
    "gated_delta_rule, 1 token": Peer("gated_delta_rule", "fused_recurrent_gated_delta_rule", _STATE),
    "gla, 1 token": Peer("gla", "fused_recurrent_gla", _STATE | {"g": "gk"}),
    "hgrn, 1 token": Peer("hgrn", "fused_recurrent_hgrn", _STATE),
}


def rank(config: Any, limit: int) -> tuple[bool, int, int, int]:
    """Stands for the autotuner's measurement: the largest tile up to `limit` (the head dim), then 4 warps, 3 stages."""
    largest = max((v for name, v in config.kwargs.items() if name.startswith("B")), default=0)
    return largest > limit, -largest, abs(config.num_warps - 4), abs(config.num_stages - 3)
