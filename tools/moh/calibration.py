"""Texts to rank heads by and to measure conversions on, and which heads are shared by them."""

from pathlib import Path

import torch

from ...eval.positions.measure import measure_positions
from ...eval.positions.reading import Reading, Stretches
from ...eval.texts import read_text
from ...lm.data.tokenizer import Tokenizer
from ...lm.hf.heads import attention_of
from ...lm.hf.importing import load_pretrained
from ...lm.mixers.attention.head_options import HeadsConfig
from ...lm.model import HybridLM
from ...lm.parts.errors import concerning
from ...lm.recipe.model import ModelConfig
from .asked import FIRST
from .ranking import ranked, shared_sets

CACHE = Path("~/.cache/hybridlm")
LONGEST = 512
"""Tokens of a stretch, which is a document by itself."""


def stretches_of(name: str, option: str, tokenizer: Tokenizer, model: ModelConfig, tokens: int) -> Stretches:
    """The beginning of a file or registered source, at most `tokens` tokens in stretches of one length.

    Raises UserError, which begins with `option`, for a text that cannot be read or is empty.
    """
    length = min(LONGEST, model.context - 1, tokens)
    with concerning(option):
        text = read_text(name, CACHE)
        return Stretches.cut(tokenizer, text, max_tokens=length, blocks=tokens // length, name=name)


def load_dense(src: str) -> HybridLM:
    """The model at `src` in float32, on the GPU if there is one."""
    return load_pretrained(src, dtype=torch.float32).to("cuda" if torch.cuda.is_available() else "cpu")


def bits_per_byte(model: HybridLM, stretches: Stretches) -> float:
    """Of the text, each stretch read from its own beginning."""
    return measure_positions(model, stretches, Reading("whole", LONGEST, LONGEST)).bits_per_byte


def sharing(model: HybridLM, heads: HeadsConfig, by: str, calibration: Stretches | None) -> HeadsConfig:
    """`heads`, whose numbers are finished, with each layer's shared ones, those of a dense model that rank highest."""
    if by == FIRST or calibration is None:
        return heads
    options = attention_of(model.config, "the model to convert")
    unit = options.n_heads // options.n_kv_heads if heads.route == "groups" else 1
    sets = shared_sets(ranked(model, calibration, by), heads.shared, unit)
    first = list(range(heads.shared))
    return heads if all(own == first for own in sets) else heads.model_copy(update={"shared_heads": sets})
