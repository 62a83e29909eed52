"""`hybridlm convert sweep`: what a conversion loses before any tuning, by number of active heads and by who is shared.

Bits per byte of a text, all models with the same weights. A token that uses all heads gives the source's own number.
"""

import json
from pathlib import Path

from rich.console import Console

from ...eval.console import plain_table, stage
from ...lm.hf.heads import attention_of, finished_heads, reconfigured, with_heads
from ...lm.hf.importing import read_model, read_tokenizer
from ...lm.mixers.attention.head_options import HeadsConfig
from .asked import FIRST, check_calibration, check_shared_by
from .calibration import bits_per_byte, load_dense, sharing, stretches_of
from .convert import CALIBRATION

TEXT = "mobydick"
"""What is measured on where no text is given; `hybridlm fetch mobydick` gets it."""


def sweep(
    src: str,
    shared: int,
    active: list[int],
    shared_by: list[str],
    *,
    route: str = "heads",
    calibrate: str | None = None,
    calibrate_tokens: int = 2048,
    text: str | None = None,
    tokens: int = 4096,
    json_file: Path | None = None,
    console: Console,
) -> None:
    """Print bits per byte of `text`, its first `tokens` tokens, routed by query norm: a line for each of `shared_by`.

    calibrate: text whose first `calibrate_tokens` tokens rank heads. Raises ConfigError, before anything is computed,
    for what does not fit the model at `src`.
    """
    for by in shared_by:
        check_shared_by("--shared-by", by)
    check_calibration(calibrate, shared_by)
    model = read_model(src)
    given = [
        HeadsConfig.parse({"router": "query_norm", "shared": shared, "active": n, "route": route}, where="sweep")
        for n in active
    ]
    heads = [finished_heads(model, one, src) for one in given]
    tokenizer = read_tokenizer(src)
    calibration = None
    if set(shared_by) != {FIRST}:
        calibration = stretches_of(calibrate or CALIBRATION, "--calibrate", tokenizer, model, calibrate_tokens)
    measured = stretches_of(text or TEXT, "--text", tokenizer, model, tokens)
    dense = load_dense(src)
    found: dict[str, dict[int, float]] = {}
    for by in shared_by:
        found[by] = {}
        with stage(console, f"ranking by {by}"):
            sets = {"shared_heads": sharing(dense, heads[0], by, calibration).shared_heads}
        for one in heads:
            with stage(console, f"{one.active} active heads, shared by {by}"):
                config = with_heads(model, one.model_copy(update=sets), src)
                found[by][one.active] = bits_per_byte(reconfigured(dense, config), measured)
    base = bits_per_byte(dense, measured)
    rows = [[by, *(f"{bits:.4f}" for bits in by_active.values())] for by, by_active in found.items()]
    title = f"bits per byte of {measured.name}, {sum(map(len, measured.rows))} tokens; all heads: {base:.4f}"
    columns = [f"{n} of {attention_of(model, src).n_heads}" for n in found[shared_by[0]]]
    console.print(plain_table(title, [f"{shared} shared by", *columns], rows))
    if json_file is not None:
        json_file.write_text(json.dumps({"text": measured.name, "all": base, "shared_by": found}, indent=1))
