"""lm-eval's own command line, with this project's models and tasks in it.

    python -m hybridlm.eval.lm_eval_cli run --model hf --model_args pretrained=DST --tasks piqa,squad_recall
    python -m hybridlm.eval.lm_eval_cli run --model hybridlm --model_args run=runs/demo --tasks piqa,squad_recall

`hf` is lm-eval's backend for transformers, which loads what `hybridlm export` wrote, our own model type included.
`hybridlm` scores a run folder with `HybridHarness`, as `hybridlm eval` does. Both know the tasks of our catalogue: see
`lm_eval_tasks` for what a name means.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import lm_eval.models
import lm_eval.tasks
import lm_eval.utils
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows

from ...lm.model.loading import load_run
from ...lm.parts.errors import UserError
from ...lm.parts.terminal import write
from ...lm.run import Run
from .evaluation import templates_compiled_once
from .harness import HybridHarness
from .lm_eval_tasks import CatalogueTasks

BATCH_TOKENS = 8192


@register_model("hybridlm")
class RunHarness(HybridHarness):
    """A run folder under lm-eval's `--model hybridlm`.

    run: the folder. max_length: tokens per input, BOS included; by default the model's context. batch_size, which
    lm-eval passes as 1 unless told otherwise: `auto` fits the free memory, a number of sequences of max_length raises
    the 8192 tokens that are computed together. device: cpu, cuda, ...; lm-eval says cuda:0 when it was told nothing,
    which here as in its own models means the CPU where there is no GPU.
    """

    def __init__(
        self,
        run: str,
        max_length: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int = 0,
    ):
        del max_batch_size  # where lm-eval's search for a size would begin; ours asks how much memory there is
        opened = Run(run)
        length = max_length or opened.recipe.model.context
        super().__init__(
            load_run(opened, device if torch.cuda.is_available() else "cpu"),
            opened.tokenizer(),
            max_length=length,
            batch_tokens="auto" if batch_size == "auto" else max(BATCH_TOKENS, int(batch_size) * length),
            seed=seed,
            progress=True,
        )


def one_prefix(token_list: list[int], prefix_token: int, **sizes: int) -> Iterator[tuple[list[int], list[int]]]:
    """lm-eval's windows of a text for its rolling log-likelihood, each behind `prefix_token`, which is no part of it.

    lm-eval's `hf` lets the tokenizer begin the text with BOS as well: BOS would stand there twice, and be scored once.
    """
    text = token_list[1:] if token_list[:1] == [prefix_token] else token_list
    return get_rolling_token_windows(token_list=text, prefix_token=prefix_token, **sizes)


@contextmanager
def adapted() -> Iterator[None]:
    """Inside, lm-eval's commands have our catalogue, rolling windows one BOS, and prompts take less time to write."""
    changes: list[tuple[Any, str, Any]] = [
        (lm_eval.tasks, "TaskManager", CatalogueTasks),
        (lm_eval.utils, "get_rolling_token_windows", one_prefix),
    ]
    with ExitStack() as stack:
        for module, name, ours in changes:
            stack.enter_context(mock.patch.object(module, name, ours))
        stack.enter_context(templates_compiled_once())
        yield


def main() -> None:
    """lm-eval's entry point; a problem the user can fix is one line on stderr and exit code 1, not a traceback."""
    try:
        with adapted():
            cli_evaluate()
    except UserError as error:
        write(f"hybridlm: {error}\n", sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
