"""lm-eval's own command line, with this project's models in it.

    python -m hybridlm.eval.lm_eval_cli run --model hf --model_args pretrained=DST --tasks piqa
    python -m hybridlm.eval.lm_eval_cli run --model hybridlm --model_args run=runs/demo --tasks piqa

`hf` is lm-eval's backend for transformers, which loads what `hybridlm export` wrote, our own model type included.
`hybridlm` scores a run folder with `HybridHarness`, as `hybridlm eval` does.

The two agree, but for one habit of `hf`: in rolling log-likelihoods it puts BOS before a text that its tokenizer has
begun with BOS already. Give it `add_bos_token=False` for such tasks.
"""

import lm_eval.models  # noqa: F401  fills the registry, which lm-eval does only while it is empty
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from ..lm.run import Run
from .harness import HybridHarness

BATCH_TOKENS = 8192


@register_model("hybridlm")
class RunHarness(HybridHarness):
    """A run folder under lm-eval's `--model hybridlm`.

    run: the folder. max_length: tokens per input, BOS included; by default the model's context. batch_size, which
    lm-eval passes as 1 unless told otherwise: `auto` fits the free memory, a number of sequences of max_length raises
    the 8192 tokens that are computed together. device: cpu, cuda, ...; by default a GPU where there is one.
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
            opened.load_model(device),
            opened.tokenizer(),
            max_length=length,
            batch_tokens="auto" if batch_size == "auto" else max(BATCH_TOKENS, int(batch_size) * length),
            seed=seed,
        )


if __name__ == "__main__":
    cli_evaluate()
