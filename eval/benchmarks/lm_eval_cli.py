"""lm-eval's own command line, with this project's models and tasks in it.

    python -m hybridlm.eval.lm_eval_cli run --model hf --model_args pretrained=DST --tasks piqa,squad_recall
    python -m hybridlm.eval.lm_eval_cli run --model hybridlm --model_args run=runs/demo --tasks piqa,squad_recall

`hf` is lm-eval's backend for transformers, which loads what `hybridlm export` wrote, our own model type included.
`hybridlm` scores a run folder with `HybridHarness`, as `hybridlm eval` does. Both know the tasks of our catalogue: see
`lm_eval_tasks` for what a name means.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import lm_eval.api.model
import lm_eval.models
import lm_eval.tasks
import lm_eval.utils
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows

from ...lm.hf.chat import ChatTemplate
from ...lm.model.loading import load_run
from ...lm.parts.errors import ConfigError, UserError
from ...lm.parts.strict import nearest
from ...lm.parts.terminal import write
from ...lm.run import Run
from .evaluation import templates_compiled_once
from .harness import HybridHarness
from .lm_eval_tasks import CatalogueTasks
from .response_cache import add_weights
from .shots import shots_counted

BATCH_TOKENS = 8192
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
ARGUMENTS = ("run", "max_length", "dtype", "seed", "batch_size", "device")

logger = logging.getLogger("lm_eval")


@register_model("hybridlm")
class RunHarness(HybridHarness):
    """A run folder under lm-eval's `--model hybridlm`.

    run: the folder. max_length: tokens per input, BOS included; by default the model's context. batch_size, which
    lm-eval passes as 1 unless told otherwise: `auto`, or `auto:N`, fits the free memory, a number of sequences of
    max_length raises the 8192 tokens that are computed together. device: cpu, cuda, ...; lm-eval says cuda:0 when it
    was told nothing, which here as in its own models means the CPU where there is no GPU. dtype: float32, as `auto` is,
    or bfloat16. seed: of sampling. trust_remote_code changes nothing: a run folder holds no code.

    Raises ConfigError for a value or an argument that is not one of these.
    """

    def __init__(
        self,
        run: Any = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        seed: int = 0,
        trust_remote_code: bool = False,
        **unknown: Any,
    ):
        del max_batch_size  # where lm-eval's search for a size would begin; ours asks how much memory there is
        del trust_remote_code
        for name in unknown:
            raise ConfigError(f"model_args: {name!r} is no argument of --model hybridlm; {nearest(name, ARGUMENTS)}")
        if run is None:
            raise ConfigError("model_args: no run given; add run=FOLDER, e.g. --model_args run=runs/demo")
        if str(dtype) not in DTYPES:
            raise ConfigError(f"model_args: dtype={dtype!r} is not supported; allowed: {', '.join(DTYPES)}")
        opened = Run(str(run))
        length = opened.recipe.model.context if max_length is None else _whole("max_length", max_length)
        automatic = str(batch_size).split(":")[0] == "auto"
        super().__init__(
            load_run(opened, device if torch.cuda.is_available() else "cpu").to(DTYPES[str(dtype)]),
            opened.tokenizer(),
            max_length=length,
            batch_tokens="auto" if automatic else max(BATCH_TOKENS, _whole("batch_size", batch_size) * length),
            seed=_whole("seed", seed),
            progress=True,
            chat=ChatTemplate.of(opened),
        )


def _whole(name: str, value: int | str) -> int:
    """lm-eval hands over what was typed."""
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name}: {value!r} is no whole number") from None


class ModelsOwnCache(CachingLM):
    """lm-eval's --use_cache in a file for each model: lm-eval keeps answers by prompt, whichever model gave them."""

    def __init__(self, lm: LM, cache_db: str):
        start, rank, end = cache_db.rpartition("_rank")
        super().__init__(lm, f"{start}_{_identity(lm)[:16]}{rank}{end}")


def _identity(lm: LM) -> str:
    """Of a model with weights its weights and settings; of one behind an address its settings."""
    if isinstance(lm, HybridHarness):
        return hashlib.sha256(f"{lm.identity} {lm.tokenizer.specials}".encode()).hexdigest()
    settings = {name: value for name, value in vars(lm).items() if isinstance(value, str | int | float | bool)}
    told = {name: value for name, value in settings.items() if "batch" not in name and "rank" not in name}
    digest = hashlib.sha256(f"{type(lm).__name__} {sorted(told.items())}".encode())
    tokenizer = getattr(getattr(lm, "tokenizer", None), "backend_tokenizer", None)
    digest.update(tokenizer.to_str().encode() if tokenizer is not None else b"")
    model = getattr(lm, "model", None)
    if isinstance(model, torch.nn.Module):
        add_weights(digest, model)
    return digest.hexdigest()


def one_prefix(token_list: list[int], prefix_token: int, **sizes: int) -> Iterator[tuple[list[int], list[int]]]:
    """lm-eval's windows of a text for its rolling log-likelihood, each behind `prefix_token`, which is no part of it.

    lm-eval's `hf` lets the tokenizer begin the text with BOS as well: BOS would stand there twice, and be scored once.
    """
    text = token_list[1:] if token_list[:1] == [prefix_token] else token_list
    return get_rolling_token_windows(token_list=text, prefix_token=prefix_token, **sizes)


@contextmanager
def adapted() -> Iterator[None]:
    """Inside, lm-eval's commands have our catalogue, rolling windows one BOS, and a cache of answers its model.

    Prompts take less time to write, and too many solved questions are one clear error.
    """
    changes: list[tuple[Any, str, Any]] = [
        (lm_eval.tasks, "TaskManager", CatalogueTasks),
        (lm_eval.api.model, "CachingLM", ModelsOwnCache),
        (lm_eval.utils, "get_rolling_token_windows", one_prefix),
    ]
    with ExitStack() as stack:
        for module, name, ours in changes:
            stack.enter_context(mock.patch.object(module, name, ours))
        stack.enter_context(templates_compiled_once())
        stack.enter_context(shots_counted())
        yield


def main() -> None:
    """lm-eval's entry point; a problem the user can fix is one line on stderr and exit code 1, not a traceback.

    What lm-eval refuses is a ValueError; LMEVAL_LOG_LEVEL=DEBUG shows where it was raised.
    """
    try:
        with adapted():
            cli_evaluate()
    except (UserError, ValueError, OSError) as error:
        logger.debug("refused", exc_info=True)
        write(f"hybridlm: {error}\n", sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
