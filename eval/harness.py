"""lm-eval's view of a model, and `evaluate`, which scores one on benchmark tasks without a network or a hub."""

import difflib
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from unittest import mock

import lm_eval.api.task
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from ..lm.data.sources import fetch
from ..lm.errors import ConfigError, DataError
from ..lm.model import HybridLM
from .continuing import Sampling, continue_batch
from .scores import Score, Scores, collect
from .scoring import TargetScore, Window, batches, inference, score_windows, split_windows

if TYPE_CHECKING:
    from ..lm.data.tokenizer import Tokenizer

TASKS = Path(__file__).parent / "tasks"


class Encoded(NamedTuple):
    """A context and its continuation in tokens, without BOS; `apart` if no token boundary fell between the two."""

    context: list[int]
    continuation: list[int]
    apart: bool


class HybridHarness(TemplateLM):
    """lm-eval's three request types on a HybridLM.

    Every input to the model is BOS, which starts every training document, and then at most `max_length - 1` tokens.
    Sequences of similar length are computed together, at most `batch_tokens` tokens with padding counted; results do
    not depend on it. The model's mode and the random state are left as they were.

    Counted by task: `truncated`, requests whose context did not fit whole; `apart`, requests where a token of the
    joined text spans context and continuation, which are then encoded one by one.

    Raises ConfigError when max_length is below 2 or batch_tokens below max_length.
    """

    def __init__(
        self,
        model: HybridLM,
        tokenizer: "Tokenizer",
        *,
        max_length: int,
        batch_tokens: int = 8192,
        seed: int = 0,
        verbose: bool = False,
    ):
        super().__init__()
        if max_length < 2:
            raise ConfigError(f"max_length: {max_length} leaves no room for a token beside BOS; use 2 or more")
        if batch_tokens < max_length:
            raise ConfigError(f"batch_tokens: {batch_tokens} is below max_length={max_length}; one sequence must fit")
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_tokens = max_length, batch_tokens
        self.seed, self.verbose = seed, verbose
        self.truncated: Counter[str] = Counter()
        self.apart: Counter[str] = Counter()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens without specials, whatever is asked: BOS is added where the model's input is put together."""
        return self.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding would give it), for each request.

        Raises ConfigError for an empty continuation, before anything is computed.
        """
        encoded = []
        for request in requests:
            tokens = self._encode(*request.args)
            self.apart[_task(request)] += tokens.apart
            self.truncated[_task(request)] += len(tokens.context) + len(tokens.continuation) > self.max_length
            encoded.append((request.args, tokens.context, tokens.continuation))
        return self._loglikelihood_tokens(encoded)

    def _encode(self, context: str, continuation: str) -> Encoded:
        """Tokens of the joined text, cut at the boundary; white space that ends the context goes to the continuation.

        Where a token spans the cut the two are encoded apart: every continuation has a token of its own, and all
        answers to one question are scored after the same context.
        """
        text = context + continuation
        context = context.rstrip()
        if not continuation:
            raise ConfigError(f"request whose context ends in {text[-40:]!r}: the continuation to score is empty")
        before, whole = self.tok_encode(context), self.tok_encode(text)
        if len(whole) > len(before) and whole[: len(before)] == before:
            return Encoded(before, whole[len(before) :], False)
        return Encoded(before, self.tok_encode(text[len(context) :]), True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [(score.log_likelihood, score.greedy) for score in self._score([pair[1:] for pair in requests])]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats, every token scored once; a text over max_length in windows that start with BOS again."""
        return [score.log_likelihood for score in self._score([([], self.tok_encode(r.args[0])) for r in requests])]

    def _score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[TargetScore]:
        """The score of each (context, targets): the sum over its windows."""
        cuts = [split_windows(context, targets, self.prefix_token_id, self.max_length) for context, targets in pairs]
        windows: list[Window] = [window for cut in cuts for window in cut]
        with inference(self.model):
            scored = score_windows(self.model, windows, self.batch_tokens)
            parts = dict(tqdm(scored, "scoring", len(windows), disable=not self.verbose))
        ordered = iter(parts[i] for i in range(len(windows)))  # summed in order, whatever the batches were
        return [_total([next(ordered) for _ in cut]) for cut in cuts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation up to its first stop string, EOS, or max_gen_toks tokens; the stop is left out.

        A context is cut on the left to leave room for max_gen_toks. Raises ConfigError when nothing of it would be left
        and for generation options other than until, max_gen_toks, do_sample, temperature and top_p.
        """
        prompts: list[list[int]] = []
        groups: dict[Sampling, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            context, options = cast(tuple[str, dict[str, Any]], request.args)
            sampling = Sampling.from_options(options)
            room = self.max_length - sampling.max_new_tokens - 1
            if room < 1:
                raise ConfigError(
                    f"max_gen_toks: {sampling.max_new_tokens} leaves no room for a context within "
                    f"max_length={self.max_length}; use at most {self.max_length - 2}"
                )
            tokens = self.tok_encode(context)
            self.truncated[_task(request)] += len(tokens) > room
            prompts.append([self.prefix_token_id, *tokens[-room:]])
            groups[sampling].append(i)
        texts = [""] * len(requests)
        with inference(self.model), tqdm(None, "generating", len(requests), disable=not self.verbose) as progress:
            for sampling, members in groups.items():
                for batch in self._generation_batches(sampling, members, prompts):
                    chosen = [prompts[i] for i in batch]
                    written = continue_batch(self.model, self.tokenizer, chosen, sampling, self.seed + batch[0])
                    for i, text in zip(batch, written, strict=True):
                        texts[i] = text
                    progress.update(len(batch))
        return texts

    def _generation_batches(
        self, sampling: Sampling, members: list[int], prompts: list[list[int]]
    ) -> Iterator[list[int]]:
        if sampling.temperature:  # a row's draws would depend on its neighbours
            return iter([i] for i in members)
        lengths = [len(prompt) + sampling.max_new_tokens for prompt in prompts]
        return batches(sorted(members, key=lambda i: -lengths[i]), lengths, self.batch_tokens)


def _task(request: Instance) -> str:
    return request.task_name or ""


def _total(parts: list[TargetScore]) -> TargetScore:
    return TargetScore(sum(part.log_likelihood for part in parts), all(part.greedy for part in parts))


def evaluate(
    model: HybridLM,
    tokenizer: "Tokenizer",
    tasks: list[str],
    *,
    max_length: int,
    cache: str | Path,
    limit: int | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    checkpoint: str = "",
    verbose: bool = False,
) -> Scores:
    """Score `model` on lm-eval tasks of eval/tasks, zero-shot, from the benchmark files in {cache}/benchkit.

    max_length: tokens per input, BOS included. limit: only the first documents of each task. checkpoint: a name for the
    weights, kept with the scores. verbose: lm-eval's messages and progress bars. Missing files are fetched. Raises
    ConfigError for no or an unknown task or a limit below 1, DataError when the files cannot be fetched.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: {limit} scores nothing; use 1 or more, or None for all documents")
    harness = HybridHarness(
        model, tokenizer, max_length=max_length, batch_tokens=batch_tokens, seed=seed, verbose=verbose
    )
    folder = Path(cache).expanduser() / "benchkit"
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata={"data": str(folder)})  # type: ignore
    if not tasks:
        raise ConfigError(f"tasks: none given; there are: {', '.join(manager.all_subtasks)}")
    sources = {task: _sources(task, manager, folder) for task in tasks}
    if not all(data.is_file() for *_, data in sources.values()):
        _fetch_benchmarks(cache)
    with _quiet(verbose), _random_state_kept():
        loaded = manager.load(list(sources))
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed)
        # not simple_evaluate: it reseeds every global generator and describes the machine by running programs
        results: Any = run_tasks(harness, loaded, limit=limit, bootstrap_iters=1000)
    rows = collect(results, loaded["tasks"], sources)
    scores = [Score(truncated=harness.truncated[r["task"]], apart=harness.apart[r["task"]], **r) for r in rows]
    return Scores(scores, checkpoint, max_length, limit)


def _sources(task: str, manager: TaskManager, folder: Path) -> list[Path]:
    """The files that say what a task asks: its YAML, what that includes, its questions."""
    names = manager.all_subtasks
    if task not in names:
        close = difflib.get_close_matches(task, names, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ConfigError(f"task {task!r}: unknown; {hint}tasks: {', '.join(names)}")
    entry = manager.task_index[task]
    assert entry.yaml_path and entry.cfg
    return [entry.yaml_path, TASKS / "_multiple_choice.yaml", folder / f"{entry.cfg['dataset_kwargs']['file']}.jsonl"]


def _fetch_benchmarks(cache: str | Path) -> None:
    try:
        fetch("benchkit", cache)
    except DataError as error:
        raise DataError(f"benchmark files: {error}; with a network, run: hybridlm fetch benchkit") from None


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """lm-eval draws from Python's global generator, to name tasks; training that goes on after this must not notice."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Without `verbose`, only lm-eval's errors come through."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    with ExitStack() as stack:
        if not verbose:
            logger.setLevel(logging.ERROR)
            stack.callback(logger.setLevel, level)
            # lm-eval has no switch for the bar it shows while it writes the prompts
            stack.enter_context(mock.patch.object(lm_eval.api.task, "tqdm", partial(tqdm, disable=True)))
        yield
