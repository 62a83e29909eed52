"""`hybridlm convert`: checkpoints from elsewhere as runs, each verb a thin call."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .arguments import MOST, JsonFile, console, numbers

convert_app = typer.Typer(help="Make a run of a checkpoint from elsewhere.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="SRC", help="a checkpoint folder, a .gguf file, or a run")]
Calibrate = Annotated[
    str | None, typer.Option(metavar="TEXT", help="file or registered source that ranks heads; default: sotu")
]
CalibrateTokens = Annotated[int, typer.Option(min=1, max=MOST, help="of that text that are read")]


@convert_app.command("llama", help="The same as `convert checkpoint`, by its first name.")
@convert_app.command("checkpoint")
def convert_checkpoint(
    src: Source,
    dst: Annotated[Path, typer.Argument(metavar="DST", help="the run folder to make")],
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as stored")] = None,
    moh: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="route heads, e.g. shared=3,active=7,shared-by=norm; or moh-llama3"),
    ] = None,
    calibrate: Calibrate = None,
    calibrate_tokens: CalibrateTokens = 2048,
) -> None:
    """Llama, Mistral, Qwen2, Qwen3, Qwen3.5 or OLMo Hybrid from disk: a run to score, to sample from or to train on.

    With --moh each token of a Llama, Mistral, Qwen2 or Qwen3 uses some of its heads (Mixture-of-Head attention).
    """
    if moh is None:
        if calibrate is not None:
            raise typer.BadParameter("ranks heads for --moh, which is not given", param_hint="--calibrate")
        from .convert import convert_checkpoint as convert

        return convert(src, dst, dtype, console())
    from .moh.convert import convert_to_moh

    convert_to_moh(src, dst, dtype, moh, calibrate, calibrate_tokens, console())


@convert_app.command("sweep")
def sweep_heads(
    src: Source,
    shared: Annotated[int, typer.Option(min=0, max=MOST, help="heads that every token uses")],
    active: Annotated[str, typer.Option(help="numbers of heads that a token uses, comma-separated")],
    shared_by: Annotated[str, typer.Option(help="of first, norm, gradient and ablation, comma-separated")] = "first",
    route: Annotated[Literal["heads", "groups"], typer.Option(help="what is chosen by tokens")] = "heads",
    calibrate: Calibrate = None,
    calibrate_tokens: CalibrateTokens = 2048,
    text: Annotated[
        str | None, typer.Option(metavar="TEXT", help="file or registered source to measure on; default: mobydick")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=MOST, help="of that text that are read")] = 4096,
    json_file: JsonFile = None,
) -> None:
    """What --moh costs before any tuning: bits per byte against active heads, nothing written but the table."""
    chosen = numbers(active, "--active", MOST)
    from .moh.sweep import sweep

    sweep(
        src,
        shared,
        chosen,
        [name.strip() for name in shared_by.split(",")],
        route=route,
        calibrate=calibrate,
        calibrate_tokens=calibrate_tokens,
        text=text,
        tokens=tokens,
        json_file=json_file,
        console=console(),
    )
