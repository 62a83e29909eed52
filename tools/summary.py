"""What a recipe would build and cost, without building it: parameters per part, FLOPs, tokens, memory."""

from collections import Counter
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from ..eval.forward.budgets import machine_bytes
from ..lm.model import HybridLM
from ..lm.parts.errors import ConfigError
from ..lm.recipe.layers import describe
from ..lm.recipe.model import BaseModelConfig
from ..lm.recipe.recipe import Recipe
from ..lm.train.distributed import processes

LONG = 2**20  # tokens


def _without_memory(config: BaseModelConfig) -> HybridLM:
    with torch.device("meta"):
        return HybridLM(config)


def parameters_by_part(model: HybridLM) -> dict[str, int]:
    """Parameters of the embeddings, each kind of mixer, the FFNs, the norms, and the head when it is not tied."""
    parts: Counter[str] = Counter(embedding=model.embed.weight.numel())
    if model.pos_embed is not None:
        parts["embedding"] += model.pos_embed.weight.numel()
    for spec, block in zip(model.config.layer_specs(), model.layers(), strict=True):
        parts[spec.mixer] += sum(p.numel() for p in block.mixer.parameters())
        parts["norms"] += block.mixer_norm.weight.numel()
        if block.ffn is not None:
            parts["ffn"] += sum(p.numel() for p in block.ffn.parameters())
            parts["norms"] += block.ffn_norm.weight.numel()
    for kind, module in model.shared.items():
        parts[kind] += sum(p.numel() for p in module.parameters())
    parts["norms"] += model.norm.weight.numel()
    if not model.config.tie_embeddings:
        parts["head"] = model.lm_head.weight.numel()
    return dict(parts)


class Size(NamedTuple):
    """What models are compared by. All of it follows from the recipe; nothing is run."""

    layers: dict[str, int]
    """Layers of each mixer."""
    parameters: int
    non_embedding: int
    """Parameters without embedding and head."""
    state: int
    """Bytes of one sequence's decoding state that do not grow with it; activations in the recipe's precision."""
    state_per_token: int
    """Bytes that every further token adds to it."""
    flops_per_token: float
    """Forward, matmuls, the mean over a sequence of the recipe's context; training takes three times as many."""
    tokens: int
    """Tokens that training reads."""

    def state_bytes(self, T: int) -> int:
        """Bytes of one sequence's decoding state after T tokens."""
        return self.state + T * self.state_per_token


def size_of(recipe: Recipe) -> Size:
    """The size of what a recipe trains, from a model without memory."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    return size_of_model(recipe.model, dtype, recipe.train.steps * recipe.train.batch * recipe.model.context)


def size_of_model(config: BaseModelConfig, dtype: torch.dtype, tokens: int) -> Size:
    """The size of a model that has activations of `dtype` and reads `tokens` in training."""
    model = _without_memory(config)
    parts = parameters_by_part(model)
    total = sum(parts.values())
    long = model.state_bytes(LONG, dtype)
    per_token = model.state_bytes(LONG + 1, dtype) - long  # here every window is full
    return Size(
        layers=dict(Counter(spec.mixer for spec in config.layer_specs())),
        parameters=total,
        non_embedding=total - parts["embedding"] - parts.get("head", 0),
        state=long - LONG * per_token,
        state_per_token=per_token,
        flops_per_token=model.flops_per_token(config.context),
        tokens=tokens,
    )


def memory_estimate(model: HybridLM, recipe: Recipe) -> dict[str, int]:
    """Bytes per process: weights, gradients and Adam moments in float32, and a rough count of saved activations.

    A block saves about 12 vectors of the model's width and 3 of its FFN's per token, or its input alone when it is
    checkpointed; attention and recurrence are counted as linear in the context.
    """
    config, train = model.config, recipe.train
    n = sum(p.numel() for p in model.parameters())
    tokens = train.sequences_per_forward(processes()) * config.context
    hidden = sum(block.ffn.down_proj.in_features for block in model.layers() if block.ffn is not None)
    saved = 1 if train.activation_checkpointing else 12
    per_token = saved * config.n_layers * config.d_model + (0 if train.activation_checkpointing else 3 * hidden)
    width = 2 if train.precision == "bf16" else 4
    return {
        "weights": 4 * n,
        "gradients": 4 * n,
        "moments": 8 * n,
        "activations": tokens * per_token * width,
    }


def check_memory(recipe: Recipe, teacher: BaseModelConfig | None = None) -> None:
    """Raises ConfigError where training needs more memory than the machine has, before any of it is asked for.

    What is counted is certain: parameters, gradients and moments, shared as the ZeRO stage does between the processes
    of this launch, the parameters of a teacher, and of a micro-batch the input of every layer.
    """
    config, train = recipe.model, recipe.train
    rough = memory_estimate(_without_memory(config), recipe)
    n = processes()
    needed = {
        name: rough[name] // (n if train.zero_stage >= stage else 1)
        for name, stage in (("moments", 1), ("gradients", 2), ("weights", 3))
    }
    width = 2 if train.precision == "bf16" else 4
    needed["activations"] = width * train.sequences_per_forward(n) * config.context * config.n_layers * config.d_model
    if teacher is not None:
        needed["teacher"] = 4 * sum(p.numel() for p in _without_memory(teacher).parameters())
    there = machine_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if (total := sum(needed.values())) > there:
        parts = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in needed.items())
        raise ConfigError(
            f"memory: training needs at least {total / 1e9:,.1f} GB ({parts}), this machine has {there / 1e9:,.1f} GB; "
            "make the model, model.context or train.micro_batch smaller"
        )


def print_summary(recipe: Recipe, console: Console) -> None:
    """The table behind `hybridlm train RECIPE --dry-run`."""
    model = _without_memory(recipe.model)
    config, train = recipe.model, recipe.train
    parts = parameters_by_part(model)
    total = sum(parts.values())
    tokens = train.steps * train.batch * config.context
    forward = model.flops_per_token(config.context)
    memory = memory_estimate(model, recipe)
    table = Table(title=f"{recipe.name}: {describe(config.layer_specs())}", title_justify="left", show_header=False)
    for name, count in parts.items():
        table.add_row(f"parameters: {name}", f"{count:,}", f"{100 * count / total:.1f}%")
    table.add_row("parameters", f"{total:,}", "", end_section=True)
    table.add_row("FLOPs per token, forward", f"{forward:,.0f}", "")
    table.add_row("FLOPs per token, training", f"{3 * forward:,.0f}", "3 x forward")
    table.add_row("FLOPs, whole run", f"{3 * forward * tokens:.3e}", "", end_section=True)
    table.add_row("tokens per step", f"{train.batch * config.context:,}", f"{train.batch} x {config.context}")
    table.add_row("tokens, whole run", f"{tokens:,}", f"{tokens / total:.1f} per parameter")
    table.add_row(
        "decoding state", f"{model.state_bytes(config.context):,} B", f"one sequence, {config.context} tokens"
    )
    for name, size in memory.items():
        table.add_row(f"memory: {name}", f"{size / 2**20:,.0f} MiB", "rough" if name == "activations" else "")
    table.add_row("memory", f"{sum(memory.values()) / 2**20:,.0f} MiB", "estimate per process")
    console.print(table)
