"""`hybridlm export`: a run as a folder that transformers loads."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..lm.hf.exporting import save_pretrained
from ..lm.hf.folders import check_free
from ..lm.hf.formats import choose_format
from ..lm.hf.heads import reconfigured, without_heads
from ..lm.hf.importing import load_pretrained
from ..lm.run import Run
from .convert import dtype_named

if TYPE_CHECKING:
    from rich.console import Console


def export_run(
    run: Path, dst: Path, format: str, dtype: str | None, console: "Console", drop_heads: bool = False
) -> None:
    """Write the newest checkpoint of `run`, and its tokenizer if it has one, to the folder `dst`.

    format: see `save_pretrained`. dtype: fp32, bf16 or fp16 to cast the weights to, but for those that a mixer keeps in
    float32; None writes them as they are. drop_heads: see `lm.hf.heads`. Raises ConfigError before anything is written.
    """
    kind = dtype_named(dtype)
    check_free(dst)
    opened = Run(run)
    config = without_heads(opened.recipe.model) if drop_heads else opened.recipe.model
    format = choose_format(config, format)
    model = load_pretrained(run)
    if drop_heads:
        model = reconfigured(model, config)
    if kind is not None:
        model = model.to(kind)
    tokenizer = opened.tokenizer() if (opened.folder / "tokenizer").is_dir() else None
    save_pretrained(model, dst, tokenizer=tokenizer, format=format)
    size = sum(file.stat().st_size for file in dst.glob("*.safetensors"))
    console.print(f"exported: {dst} ({format}, {size / 1e6:.1f} MB of weights)", highlight=False)
    if tokenizer is None:
        console.print(f"{run} has no tokenizer folder: none was written", highlight=False)
    if format == "hybridlm":
        console.print("transformers loads it after `import hybridlm`", highlight=False, markup=False)
