"""A text in stretches, and the windows in which its tokens are predicted one from another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self, get_args

from ...lm.parts.errors import ConfigError, DataError
from ...lm.parts.strict import nearest
from ...lm.recipe.eval import Mode
from ..forward.long_context import check_length

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Tokenizer
    from ...lm.model import HybridLM


@dataclass(frozen=True)
class Stretches:
    """A text's first tokens in documents of their own. rows: token ids without BOS, all but the last equally many.

    prefix_id: what stands before the first token of each, BOS mostly. front: whether every later window starts with it
    too, as the model's prompts do.
    """

    name: str
    rows: list[list[int]]
    bytes: int
    prefix_id: int
    front: bool = True

    @classmethod
    def cut(cls, tokenizer: "Tokenizer", text: str, *, max_tokens: int, blocks: int, name: str = "text") -> Self:
        """The first `blocks` of `max_tokens` tokens each; fewer or shorter ones where the text has fewer tokens.

        Raises ConfigError for numbers below 1, DataError for an empty text.
        """
        for what, value in (("max_tokens", max_tokens), ("blocks", blocks)):
            if value < 1:
                raise ConfigError(f"{what}: {value}; use 1 or more")
        tokens = tokenizer.encode_documents([text])[0][1:-1][: blocks * max_tokens]
        if not tokens:
            raise DataError(f"text {name!r}: is empty; give a longer one")
        rows = [tokens[start : start + max_tokens] for start in range(0, len(tokens), max_tokens)]
        return cls(name, rows, len(tokenizer.decode(tokens).encode()), tokenizer.prefix_id, bool(tokenizer.front))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return len(self.rows[0])


class Span(NamedTuple):
    """One window: tokens first..stop - 1 are read, BOS or what stands for it being token 0, and those after
    start..stop - 1 are scored.
    """

    first: int
    start: int
    stop: int


def spans(n: int, mode: Mode, window: int, stride: int, front: bool = True) -> list[Span]:
    """The windows in which n tokens after BOS are scored, every one of them once.

    whole: a single one. carry: side by side. reset: side by side but for one token, which every window after the first
    sees before its first target; the last one sees as many as fit. sliding: `stride` new tokens at a time. front:
    whether the first token that a later window reads gives its place to BOS.
    """
    if mode == "whole":
        return [Span(0, 0, n)]
    if mode == "carry":
        return [Span(start, start, min(start + window, n)) for start in range(0, n, window)]
    new = window - front if mode == "reset" else stride
    first = [Span(0, 0, min(window, n))]
    starts = range(window, n, new)
    return first + [Span(max(0, min(s + new, n) - window), s, min(s + new, n)) for s in starts]


@dataclass(frozen=True)
class Reading:
    """How tokens are predicted one from another.

    mode:
    `whole`: one pass; recurrent states, keys and values go from chunk to chunk.
    `sliding`: windows of `window` tokens, BOS included, each with `stride` (default: half of it) new ones, all states
        anew; a token is predicted from at least window - stride before it.
    `reset`: windows side by side, all states anew: what lm-eval does with long texts.
    `carry`: windows side by side; recurrent states go on, attention sees its window alone.
    buckets: positions averaged together. beyond: `error` or `run`, for inputs longer than rotary attention was trained
    for.
    """

    mode: Mode
    window: int
    buckets: int
    stride: int | None = None
    beyond: str = "error"

    def check(self, model: "HybridLM", stretches: Stretches) -> None:
        """Raises ConfigError for what cannot be, or not with this model, whose weights are not looked at."""
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode {self.mode!r}: unknown; {nearest(self.mode, get_args(Mode))}")
        if self.window < 2:
            raise ConfigError(f"window: {self.window} leaves no token beside BOS; use 2 or more")
        if self.stride is not None and not 0 < self.stride < self.window:
            raise ConfigError(
                f"stride: {self.stride} new tokens in a window of {self.window}; use 1 to {self.window - 1}"
            )
        if self.buckets < 1:
            raise ConfigError(f"buckets: {self.buckets}; use 1 or more")
        if self.mode == "carry" and not can_carry(model):
            raise ConfigError(
                "mode 'carry': the model has attention only, no state to carry; use reset, sliding or whole"
            )
        if self.mode == "whole":
            check_length(model.config, stretches.longest, self.beyond, "max_tokens")
        else:
            check_length(model.config, min(self.window, stretches.longest), self.beyond, "window")

    @property
    def new_tokens(self) -> int:
        """Of each window of `sliding`."""
        return self.stride or max(1, self.window // 2)

    def plan(self, n: int, front: bool) -> list[Span]:
        """The windows of a row of n tokens; front: whether all of them start with BOS."""
        return spans(n, self.mode, self.window, self.new_tokens, front)


def modes_of(model: "HybridLM", max_tokens: int) -> list[Mode]:
    """The modes that this model has for so many tokens."""
    fits = model.config.positions != "learned" or max_tokens <= model.config.context
    whole: list[Mode] = ["whole"] if fits else []
    return [*whole, "sliding", "reset", *(["carry"] if can_carry(model) else [])]


def can_carry(model: "HybridLM") -> bool:
    """Whether any layer has a state of fixed size, which can go on where attention's window ends."""
    return any(mixer.constant_state for mixer in model.mixers())
