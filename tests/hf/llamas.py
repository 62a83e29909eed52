"""Random tiny checkpoints of the Llama family, made by transformers, and a tokenizer for them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

VOCAB = 67
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def build(kind: str = "llama", seed: int = 0, std: float = 0.15, **options: Any) -> Any:
    """A transformers model in evaluation mode with weights of trained size, none of them at a special value."""
    import transformers

    config = getattr(transformers, f"{KINDS[kind]}Config")(**{**SIZES, **options})
    config._attn_implementation = "eager"
    model: nn.Module = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else std * noise)
    return model


def save(folder: Path, kind: str = "llama", *, shard: str = "5GB", dtype: Any = None, **options: Any) -> Any:
    """Save such a model and its tokenizer in `folder`, and return it."""
    model = build(kind, **options)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path, **settings: Any) -> Tokenizer:
    """A byte-level BPE of at most VOCAB tokens, <s> and </s> first, with tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat and that was that, 0123456789\n"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes a key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def ids(rows: int = 2, T: int = 50) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, T), generator=torch.Generator().manual_seed(1))
