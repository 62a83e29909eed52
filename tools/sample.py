"""Text from a run, piece by piece."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..lm.model.generate import decode
from ..lm.model.loading import load_run
from ..lm.run import Run


def stream(
    run: Path | Run,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    write: Callable[[str], None],
) -> None:
    """Write the prompt, then its continuation as the tokens are drawn, until the model ends the document."""
    run = run if isinstance(run, Run) else Run(run)
    model, tokenizer = load_run(run), run.tokenizer()
    text = tokenizer.stream()
    write(prompt)
    ids = tokenizer.encode_prompt(prompt) or [tokenizer.prefix_id]

    drawn = decode(
        model,
        torch.tensor([ids], device=model.device),
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=(tokenizer.eos_id,),
        seed=seed,
    )
    for token in map(int, drawn):
        if token != tokenizer.eos_id:
            write(text.push(token))
    write(text.flush())
