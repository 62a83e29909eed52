"""Text from a run, piece by piece."""

from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import torch

from ..lm.hf.chat import ChatTemplate
from ..lm.model.generate import check_options, decode
from ..lm.model.loading import load_run
from ..lm.parts.errors import ConfigError
from ..lm.run import Run


def stream(
    run: Path | Run,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    write: Callable[[str], None],
    *,
    chat: bool = False,
) -> None:
    """Write the prompt, then its continuation as the tokens are drawn, until the model ends the document.

    chat: the prompt is a user's message, put into the run's chat template, and the answer alone is written. An empty
    prompt asks for a text from its beginning. Raises ConfigError, before the weights are read, on options out of range,
    on a prompt that is no text or more than the model has positions for, and without the template that `chat` needs.
    """
    check_options(max_new_tokens, temperature, top_p, seed)
    if any("\ud800" <= char <= "\udfff" for char in prompt):
        raise ConfigError(f"prompt: {prompt!r} holds bytes that are no UTF-8; give a text")
    run = run if isinstance(run, Run) else Run(run)
    asked = ChatTemplate.of(run).render([{"role": "user", "content": prompt}]) if chat else prompt
    model, tokenizer = load_run(run), run.tokenizer()
    ids = tokenizer.encode(asked) if chat else tokenizer.encode_prompt(asked)  # a template writes its own BOS
    ids = ids or [tokenizer.prefix_id]
    text = tokenizer.stream(ids)  # alone it would drop the space of a first token

    drawn = decode(
        model,
        torch.tensor([ids], device=model.device),
        max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_ids=tokenizer.stop_ids,
        seed=seed,
        vocab_size=tokenizer.vocab_size,
    )
    first = list(islice(drawn, 1))  # what is wrong with the prompt is said before anything is written
    if not chat:
        write(prompt)
    for token in map(int, chain(first, drawn)):
        if token not in tokenizer.stop_ids:
            write(text.push(token))
    write(text.flush())
