"""Stored weights into a model that they have to fit."""

from pathlib import Path

from torch import Tensor, nn

from ..parts.errors import CheckpointError
from ..run import differences


def fill(model: nn.Module, weights: dict[str, Tensor], where: Path, tied: bool) -> None:
    """Copy the weights at `where`. tied: the head's are stored once, as the embedding's.

    Raises CheckpointError with the names and shapes that do not fit.
    """
    state = model.state_dict()
    if tied and "embed.weight" in weights:
        weights = {**weights, "lm_head.weight": weights["embed.weight"]}
    stored, wanted = ({name: tuple(x.shape) for name, x in tensors.items()} for tensors in (weights, state))
    found = [f"{name} is {old} there and {new} here" for name, old, new in differences(stored, wanted, "absent")]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise CheckpointError(
            f"{where}: not the weights of this run's recipe.yaml: {'; '.join(found[:3])}{more}. "
            "Set the model in recipe.yaml back to what was trained"
        )
    model.load_state_dict(weights)
