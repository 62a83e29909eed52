"""`hybridlm convert checkpoint`: a published checkpoint as a run folder."""

import shlex
from pathlib import Path

import torch
from rich.console import Console

from ..eval.console import stage
from ..lm.hf.importing import import_checkpoint
from ..lm.parts.errors import ConfigError
from ..lm.parts.strict import nearest
from ..lm.recipe.layers import describe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_named(name: str | None) -> torch.dtype | None:
    """The dtype of an option; None for none. Raises ConfigError for an unknown one."""
    if name is not None and name not in DTYPES:
        raise ConfigError(f"dtype {name!r}: unknown; {nearest(name, DTYPES)}")
    return DTYPES[name] if name else None


def convert_checkpoint(src: str, dst: Path, dtype: str | None, console: Console) -> None:
    """Make the run folder `dst` of the checkpoint `src`; see `import_checkpoint`.

    dtype: fp32, bf16 or fp16, of the weights on disk; None keeps them as they are stored.
    """
    kind = dtype_named(dtype)
    with stage(console, f"converting {src}"):
        run = import_checkpoint(src, dst, kind)
    model = run.recipe.model
    size = (run.newest_checkpoint() / "model.safetensors").stat().st_size
    there = shlex.quote(str(dst))
    console.print(
        f"converted: {dst} ({describe(model.layer_specs())}, width {model.d_model}, {size / 1e6:.1f} MB of weights)\n"
        f"score it with hybridlm eval {there}; continue a text with hybridlm generate {there} --prompt TEXT; train it "
        f"on your data with hybridlm train {there} data.train=[...]",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
