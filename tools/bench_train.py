"""Training throughput beside transformers' OlmoHybrid of the same size: alternating steps in one process."""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from ..lm.model import HybridLM
from ..lm.recipe.recipe import Recipe
from ..lm.train.engine import Engine


def bench(steps: int, precision: str, threads: int, console: Console) -> dict[str, float]:
    """Time `steps` optimizer steps of each model, ours through the DeepSpeed engine, theirs in a plain loop.

    Same batch, sizes, dtype (bf16 is autocast for both) and threads, one step of each in turn. Prints tokens/s from the
    fastest step of each and the median of the paired ratios, and returns them.
    """
    torch.set_num_threads(threads)
    overrides = [f"train.precision={precision}", "train.batch=8", "train.micro_batch=8", f"train.steps={steps}"]
    recipe = Recipe.load("demo", overrides)
    config, batch = recipe.model, recipe.train.batch
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (batch, config.context), generator=generator)
    ours, our_size = _ours(recipe, ids)
    theirs, their_size = _olmo_hybrid(recipe, ids)
    times: dict[str, list[float]] = {"hybridlm": [], "transformers": []}
    for i in range(steps + 2):
        for name, step in (("hybridlm", ours), ("transformers", theirs)):
            started = time.perf_counter()
            step()
            if i >= 2:  # the first steps allocate
                times[name].append(time.perf_counter() - started)
    pairs = [b / a for a, b in zip(times["hybridlm"], times["transformers"], strict=True)]
    result = {
        "ratio_median": statistics.median(pairs),
        "ratio_of_minima": min(times["transformers"]) / min(times["hybridlm"]),
    }
    table = Table(title=f"training step, {batch} x {config.context} tokens, {precision}, {threads} thread(s)")
    for column in ("model", "parameters", "fastest step", "tokens/s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    labels = {
        "hybridlm": ("hybridlm, DeepSpeed engine", our_size),
        "transformers": ("OlmoHybrid, plain loop", their_size),
    }
    for name, (label, size) in labels.items():
        fastest = min(times[name])
        result[f"{name}_tokens_per_second"] = batch * config.context / fastest
        table.add_row(label, f"{size:,}", f"{1e3 * fastest:.0f} ms", f"{batch * config.context / fastest:,.0f}")
    console.print(table)
    console.print(
        f"speed ratio hybridlm / transformers: {result['ratio_median']:.2f} (median of {steps} paired steps), "
        f"{result['ratio_of_minima']:.2f} (fastest steps)",
        highlight=False,
        markup=False,
    )
    return result


def _ours(recipe: Recipe, ids: torch.Tensor) -> tuple[Callable[[], None], int]:
    torch.manual_seed(0)
    model = HybridLM(recipe.model)
    engine = Engine(model, recipe.optim, recipe.train, recipe.train.steps)
    cu_seqlens = torch.arange(0, ids.numel() + 1, ids.shape[1])

    def step() -> None:
        packed = ids.view(1, -1)
        output = engine.forward(input_ids=packed, labels=packed, cu_seqlens=cu_seqlens, logits=False)
        engine.backward(output.loss)  # type: ignore[arg-type]
        engine.step(recipe.optim.lr)

    return step, sum(p.numel() for p in model.parameters())


def _olmo_hybrid(recipe: Recipe, ids: torch.Tensor) -> tuple[Callable[[], None], int]:
    # where flash-linear-attention is installed transformers binds its Triton op, which has no CPU form
    sys.modules["fla"] = None  # type: ignore[assignment]
    from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

    from ..lm.mixers.attention.options import AttentionConfig
    from ..lm.mixers.gated_deltanet import GatedDeltaNetConfig

    specs = recipe.model.layer_specs()
    delta = next(s.options for s in specs if isinstance(s.options, GatedDeltaNetConfig))
    full = next(s.options for s in specs if isinstance(s.options, AttentionConfig))
    with torch.device("meta"):
        ffn = next(HybridLM(recipe.model).layers()).ffn
    assert ffn is not None
    config = OlmoHybridConfig(
        vocab_size=recipe.model.vocab_size,
        hidden_size=recipe.model.d_model,
        intermediate_size=ffn.down_proj.in_features,
        num_hidden_layers=recipe.model.n_layers,
        num_attention_heads=full.n_heads or 0,
        num_key_value_heads=full.n_kv_heads,
        max_position_embeddings=recipe.model.context,
        layer_types=["linear_attention" if s.mixer == "gated_deltanet" else "full_attention" for s in specs],
        linear_num_key_heads=delta.n_heads,
        linear_num_value_heads=delta.n_v_heads,
        linear_key_head_dim=delta.head_dim,
        linear_value_head_dim=delta.v_head_dim,
        tie_word_embeddings=recipe.model.tie_embeddings,
        pad_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = OlmoHybridForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    low = recipe.train.precision == "bf16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in model.parameters())
