"""lm-eval's view of a model: its three kinds of requests."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from ...lm.model import HybridLM
from ...lm.model.generate import NaNLogits
from ...lm.parts.errors import ConfigError, NaNError
from ..forward.budgets import automatic_batch_tokens
from ..forward.nan_trace import first_nan
from ..forward.processes import in_parallel
from ..forward.scoring import NaNScore, TargetScore, Window, batches, inference, score_windows, split_windows, total
from .continuing import Sampling, continue_batch
from .response_cache import ResponseCache, fingerprint

if TYPE_CHECKING:
    from ...lm.data.tokenizer import Encoded, Tokenizer
    from ...lm.hf.chat import ChatTemplate


OnLong = Literal["truncate", "error"]
"""What happens to a context that does not fit whole: cut on the left and counted, or an error."""


class HybridHarness(LM):
    """lm-eval's three request types on a HybridLM.

    Every input to the model starts with the tokenizer's `front`: BOS, which starts every training document, or what the
    source of an imported model puts there, which may be nothing. A text that spells it gets it once. All together are
    at most `max_length` tokens.
    Sequences of similar length are computed together, at most `batch_tokens` tokens with padding counted, or as many as
    the free memory holds if that is "auto"; results do not depend on it. What requests begin with alike is computed
    once, unless share_prefixes is False, which exists to be measured. The model's mode and the random state are left as
    they were.

    responses: folder of a ResponseCache. data_parallel: every process of the torch.distributed group makes the same
    calls, does a share of the work and gets all results, so lm-eval needs to know of one process only. progress: a bar
    on a terminal. chat: the templates for prompts that are conversations.

    Counted by task: `truncated`, requests whose context did not fit whole; `apart`, requests where a token of the
    joined text spans context and continuation, which are then encoded one by one.

    Raises ConfigError when max_length is below 2 or batch_tokens below max_length, and for a long context under
    on_long="error"; NaNError that says where when the model gives NaN.
    """

    _template: str | None = None

    def __init__(
        self,
        model: HybridLM,
        tokenizer: "Tokenizer",
        *,
        max_length: int,
        batch_tokens: int | Literal["auto"] = 8192,
        share_prefixes: bool = True,
        on_long: OnLong = "truncate",
        responses: str | Path | None = None,
        data_parallel: bool = False,
        seed: int = 0,
        progress: bool = False,
        chat: "ChatTemplate | None" = None,
    ):
        super().__init__()
        if max_length < 2:
            raise ConfigError(f"max_length: {max_length} leaves no room for a token beside BOS; use 2 or more")
        if batch_tokens == "auto":
            batch_tokens = automatic_batch_tokens(model, max_length)
        if batch_tokens < max_length:
            raise ConfigError(
                f"batch_tokens: {batch_tokens} is below max_length={max_length}; one sequence must fit, raise the one "
                "or lower the other"
            )
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_tokens, self.share_prefixes = max_length, batch_tokens, share_prefixes
        self.on_long, self.data_parallel = on_long, data_parallel
        self.seed, self.progress = seed, progress
        self.truncated: Counter[str] = Counter()
        self.apart: Counter[str] = Counter()
        self.chat = chat
        self._responses = responses

    @cached_property
    def identity(self) -> str:
        """SHA-256 of what an answer depends on besides the tokens asked: weights, architecture, tokenizer, length."""
        options: dict[str, Any] = {"max_length": self.max_length, "share_prefixes": self.share_prefixes}
        if self.tokenizer.stop_ids != (self.tokenizer.eos_id,):  # answers of when there was one are found again
            options["stop_ids"] = self.tokenizer.stop_ids
        return fingerprint(self.model, self.tokenizer, **options)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's --cache_requests knows the tokenizer and its chat templates by."""
        told = json.dumps(self.chat.templates if self.chat else {}, sort_keys=True)
        return f"{self.tokenizer.fingerprint}-{hashlib.sha256(told.encode()).hexdigest()}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja template that `apply_chat_template` uses from now on: the default for True, or the one so called.

        Raises ConfigError when there is no such template.
        """
        if chat_template is False:
            return None
        self._template = None if chat_template is True else chat_template
        return self._chat().text(self._template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the prompt that the model was tuned on. Raises ConfigError when there is no chat template."""
        return self._chat().render(chat_history, name=self._template, answer_follows=add_generation_prompt)

    def _chat(self) -> "ChatTemplate":
        if self.chat is None:
            raise ConfigError("chat template: this harness was given none; pass chat=ChatTemplate.of(run)")
        return self.chat

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding would give it), for each request.

        Raises ConfigError for an empty continuation, before anything is computed.
        """
        pairs = []
        for request in requests:
            tokens = self._encode(*request.args)
            self.apart[_task(request)] += tokens.apart
            room = self.max_length + 1 - (len(self.tokenizer.front) or not tokens.context)
            self._check_fits(request, len(tokens.context) + len(tokens.continuation), room)
            pairs.append((tokens.context, tokens.continuation))
        return [(score.log_likelihood, score.greedy) for score in self._score(pairs, requests)]

    def _check_fits(self, request: Instance, length: int, room: int) -> None:
        """Count a context that will be cut, or refuse it."""
        if length > room and self.on_long == "error":
            raise ConfigError(
                f"{_where(request)}: {length} tokens, but max_length={self.max_length} has room for {room}; raise it, "
                "or let contexts be cut with on_long='truncate'"
            )
        self.truncated[_task(request)] += length > room

    def _encode(self, context: str, continuation: str) -> "Encoded":
        """See `Tokenizer.encode_pair`; without what stands in front, also where the text spells it."""
        if not continuation:
            raise ConfigError(f"request whose context ends in {context[-40:]!r}: the continuation to score is empty")
        tokens = self.tokenizer.encode_pair(context, continuation)
        if tokens.context:
            return tokens._replace(context=_behind(self.tokenizer.front, tokens.context))
        return tokens._replace(continuation=self._alone(tokens.continuation))

    def _alone(self, targets: list[int]) -> list[int]:
        """Targets without a context, and without what they are scored behind."""
        lead = self.tokenizer.front or (self.tokenizer.prefix_id,)
        return _behind(lead, targets) or targets

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats, every token scored once; a text over max_length in windows that start alike."""
        texts = [([], self._alone(self.tokenizer.encode(request.args[0]))) for request in requests]
        return [score.log_likelihood for score in self._score(texts, requests)]

    def _score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], requests: Sequence[Instance]
    ) -> list[TargetScore]:
        """The score of each (context, targets), made by the request of the same index: the sum over its windows."""
        front, prefix_id = self.tokenizer.front, self.tokenizer.prefix_id
        cuts = [split_windows(context, targets, front, self.max_length, prefix_id) for context, targets in pairs]
        windows: list[Window] = [window for cut in cuts for window in cut]
        owners = [request for cut, request in zip(cuts, requests, strict=True) for _ in cut]

        def compute(chosen: list[int]) -> Iterator[tuple[int, TargetScore]]:
            asked = [windows[i] for i in chosen]
            try:
                for i, score in score_windows(self.model, asked, self.batch_tokens, self.share_prefixes):
                    yield chosen[i], score
            except NaNScore as error:
                number = chosen[error.window]
                where = f"{_where(owners[number])}: first in {first_nan(self.model, windows[number].inputs)}"
                raise NaNError(f"{error}; {where}") from None

        order = sorted(range(len(windows)), key=lambda i: windows[i].inputs)  # neighbours have a beginning in common
        lengths = [len(window.inputs) for window in windows]
        scores = self._answers([("score", *window) for window in windows], order, lengths, compute, "scoring")
        parts = iter(TargetScore(*scores[i]) for i in range(len(windows)))  # summed in order, whatever the batches were
        return [total([next(parts) for _ in cut]) for cut in cuts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation up to its first stop string, an end of text, or max_gen_toks tokens.

        What ends it is left out. A context is cut on the left to leave room for max_gen_toks. Raises ConfigError when
        nothing of it would be left, and for generation options other than until, max_gen_toks, do_sample, temperature
        and top_p.
        """
        prompts: list[list[int]] = []
        groups: dict[Sampling, list[int]] = defaultdict(list)
        front, back = self.tokenizer.front, self.tokenizer.back
        for i, request in enumerate(requests):
            context, options = cast(tuple[str, dict[str, Any]], request.args)
            sampling = Sampling.from_options(options)
            around = sampling.max_new_tokens + len(front) + len(back)
            room = self.max_length - around
            if room < 1:
                raise ConfigError(
                    f"{_where(request)}: max_gen_toks={sampling.max_new_tokens} leaves no room for a context within "
                    f"max_length={self.max_length}; raise it to {around + 1} or more, or leave the task out"
                )
            tokens = _behind(front, self.tokenizer.encode(context))
            self._check_fits(request, len(tokens), room)
            prompts.append([*front, *tokens[-room:], *back] or [self.tokenizer.prefix_id])
            groups[sampling].append(i)
        samplings = {i: sampling for sampling, members in groups.items() for i in members}
        lengths = [len(prompt) + samplings[i].max_new_tokens for i, prompt in enumerate(prompts)]
        seeds = _seeds(requests, self.seed)

        def compute(chosen: list[int]) -> Iterator[tuple[int, str]]:
            mine = set(chosen)
            for sampling, members in groups.items():
                longest_first = sorted(mine.intersection(members), key=lambda i: (-lengths[i], i))
                alone = sampling.temperature > 0  # a row's draws would depend on its neighbours
                rows = batches(longest_first, lengths, 0 if alone else self.batch_tokens)
                for batch in rows:
                    asked = [prompts[i] for i in batch]
                    try:
                        texts = continue_batch(self.model, self.tokenizer, asked, sampling, seeds[batch[0]])
                    except NaNLogits as error:
                        where = f"first in {first_nan(self.model, asked[error.row])}"
                        raise NaNError(f"{error}; {_where(requests[batch[error.row]])}: {where}") from None
                    yield from zip(batch, texts, strict=True)

        keys = [
            ("generate", prompt, *samplings[i], seeds[i] if samplings[i].temperature else None)
            for i, prompt in enumerate(prompts)
        ]
        texts = self._answers(keys, range(len(requests)), lengths, compute, "generating")
        return [texts[i] for i in range(len(requests))]

    def _answers(
        self,
        keys: Sequence[tuple[Any, ...]],
        order: Sequence[int],
        lengths: Sequence[int],
        compute: Callable[[list[int]], Iterator[tuple[int, Any]]],
        doing: str,
    ) -> dict[int, Any]:
        """Answers by index in `keys`, from the response cache or from `compute`, by this process or by the group."""

        def work(chosen: list[int]) -> dict[int, Any]:
            with ExitStack() as stack:
                kept = ResponseCache(self._responses, self.identity) if self._responses is not None else None
                cache = stack.enter_context(kept) if kept else None
                done = (
                    {chosen[k]: answer for k, answer in cache.known(keys[i] for i in chosen).items()} if cache else {}
                )
                left = [i for i in chosen if i not in done]
                hidden = None if self.progress else True  # None: where there is no terminal
                bar = tqdm(None, doing, len(chosen), leave=False, initial=len(done), disable=hidden)
                stack.enter_context(bar)
                stack.enter_context(inference(self.model))
                for i, answer in compute(left):
                    done[i] = answer
                    bar.update()
                    if cache:
                        cache.add(keys[i], answer)
            return done

        return in_parallel(order, lengths, work) if self.data_parallel else work(list(order))


def _behind(front: Sequence[int], tokens: list[int]) -> list[int]:
    """Tokens of a text without `front`, which its window starts with anyway, where the text spells it."""
    return tokens[len(front) :] if tuple(tokens[: len(front)]) == tuple(front) else tokens


def _task(request: Instance) -> str:
    return request.task_name or ""


def _where(request: Instance) -> str:
    return f"task {_task(request)!r}, document {request.doc_id}"


def _seeds(requests: Sequence[Instance], seed: int) -> list[int]:
    """A seed for each request that depends on its document and on how often it was asked before, on nothing else."""
    asked: Counter[tuple[str, int | None]] = Counter()
    seeds = []
    for request in requests:
        document = (_task(request), request.doc_id)
        name = f"{seed} {document} {asked[document]}"
        seeds.append(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]))
        asked[document] += 1
    return seeds
