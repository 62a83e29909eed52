"""`hybridlm convert llama --moh`: a checkpoint as a run whose tokens use some of the heads."""

import shlex
from pathlib import Path

from rich.console import Console

from ...eval.console import stage
from ...lm.hf.folders import check_free
from ...lm.hf.heads import attention_of, finished_heads
from ...lm.hf.importing import import_checkpoint, read_model, read_tokenizer
from ...lm.mixers.attention.head_options import HeadsConfig
from ..convert import dtype_named
from .asked import FIRST, Conversion, check_calibration, parse
from .calibration import load_dense, sharing, stretches_of


def convert_to_moh(
    src: str, dst: Path, dtype: str | None, moh: str, calibrate: str | None, tokens: int, console: Console
) -> None:
    """Make the run folder `dst` of a checkpoint or run of attention layers alone; see `import_checkpoint`.

    moh: see `parse`. calibrate: file or registered source whose first tokens, `tokens` at most, rank the heads, in
    float32. Raises ConfigError, before anything is computed, for what does not fit, and leaves `dst` as it was.
    """
    kind, asked = dtype_named(dtype), parse(moh)
    check_calibration(calibrate, [asked.shared_by])
    check_free(dst.expanduser())
    heads = _heads(src, asked)
    if asked.shared_by != FIRST:
        heads = _by_rank(src, heads, asked.shared_by, calibrate or CALIBRATION, tokens, console)
    with stage(console, f"converting {src}"):
        import_checkpoint(src, dst, kind, heads)
    n_heads = attention_of(read_model(src), src).n_heads
    measure = ["hybridlm", "convert", "sweep", src, "--shared", str(heads.shared), "--active", str(heads.active)]
    measure += ["--shared-by", asked.shared_by, "--route", heads.route]
    if asked.shared_by != FIRST:
        measure += ["--calibrate", calibrate or CALIBRATION, "--calibrate-tokens", str(tokens)]
    saved = "" if heads.active < n_heads else "; every token uses all heads, so nothing is saved"
    console.print(
        f"converted: {dst} ({heads.active} of {n_heads} heads a token, {heads.shared} of them shared, by "
        f"{asked.shared_by}; the weights are those of {src}{saved})\n"
        f"what it loses before tuning: {shlex.join(measure)}\n"
        f"tune it with hybridlm train {shlex.quote(str(dst))} data.train=[...]",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


CALIBRATION = "sotu"
"""What ranks heads where no text is given; `hybridlm fetch sotu` gets it."""


def _heads(src: str, asked: Conversion) -> HeadsConfig:
    """The options, known to fit the model at `src`."""
    model = read_model(src)
    return finished_heads(model, asked.heads_in(attention_of(model, src).n_heads), src)


def _by_rank(src: str, heads: HeadsConfig, by: str, text: str, tokens: int, console: Console) -> HeadsConfig:
    calibration = stretches_of(text, "--calibrate", read_tokenizer(src), read_model(src), tokens)
    with stage(console, f"ranking heads by {by} on {sum(map(len, calibration.rows))} tokens of {text}"):
        return sharing(load_dense(src), heads, by, calibration)
