"""What `generate` of transformers carries from call to call, and checks of what it says of the past."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..model import Cache, HybridLM


class HybridLMCache:
    """The decoding state as `generate` carries it: what the model remembers of each row, and the columns it has seen.

    Rows differ in length where there was padding, which no state contains; columns count it.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.state: Cache | None = None
        self.columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input_ids seen so far, padding included."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, in this order; a row may be kept more than once."""
        if self.state is not None:
            self.state = self.state.select(beam_idx.tolist())

    def crop(self, max_length: int) -> NoReturn:
        """Raises ValueError: a recurrent state cannot be wound back, as assisted decoding would need."""
        raise ValueError("past_key_values: hybridlm's state cannot be cut back to an earlier token; decode without it")

    def past(self, rows: int) -> list[int]:
        """Tokens that the state of each row has seen."""
        return self.state.lengths if self.state is not None else [0] * rows

    def started(self, model: HybridLM, rows: int, device: torch.device) -> Cache:
        """The state, an empty one at first: on the device of the tokens, weights may lie elsewhere."""
        if self.state is None:
            dtype = model.embed.weight.dtype
            self.state = Cache([mixer.new_state(rows, dtype, device) for mixer in model.mixers()], rows)
        return self.state


def own_cache(given: Any) -> HybridLMCache | None:
    """`past_key_values` as it was given. Raises TypeError for another model's, also an empty one: it would stay so."""
    if given is None or isinstance(given, HybridLMCache):
        return given
    raise TypeError(
        f"past_key_values: is a {type(given).__name__}, but this model remembers more than keys and values; leave it "
        "out at first, and hand on past_key_values of the last call's output"
    )


def recent(mask: Tensor, T: int, seen: int) -> Tensor:
    """The part [B, T] of a mask that belongs to this call's tokens."""
    if mask.ndim != 2 or mask.shape[1] not in (T, seen + T):
        raise ValueError(
            f"attention_mask: shape {tuple(mask.shape)} for {T} new tokens after {seen} columns; give one value per "
            f"token [B, {T}], or the past too [B, {seen + T}]"
        )
    return mask[:, mask.shape[1] - T :]


def check_ends(mask: Tensor) -> None:
    """Raises ValueError unless every row of a prompt's mask ends in a token."""
    ends = mask[:, -1].bool()
    if not bool(ends.all()):
        row = int((~ends).nonzero()[0])
        only = " is padding only; leave it out, or begin it with a BOS token"
        behind = " ends in padding; pad prompts on the left (tokenizer.padding_side='left')"
        raise ValueError(f"attention_mask: row {row}{behind if mask[row].any() else only}")


def check_positions(position_ids: Tensor, mask: Tensor | None, past: list[int]) -> None:
    """Raises ValueError where a real token's given position is not the one that it has in its row."""
    real = torch.ones_like(position_ids) if mask is None else mask.long()
    expected = torch.tensor(past, device=real.device)[:, None] + real.cumsum(-1) - 1
    wrong = (position_ids != expected) & real.bool()
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        given, own = position_ids.expand_as(wrong)[row, column], expected[row, column]
        raise ValueError(
            f"position_ids: {int(given)} for the token in row {row}, column {column}, which is number {int(own)} of "
            "its row; positions follow from the attention_mask, leave position_ids out"
        )
