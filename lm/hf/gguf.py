"""Llama models in llama.cpp's GGUF files: dequantised, with rows, names and tokenizer as transformers has them.

llama.cpp rotates neighbouring channels where transformers rotates the two halves of a head, so GGUF files of this
architecture hold the rows of q and k interleaved; reading undoes that.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import Tensor

from ..data.fast import template
from ..data.tokenizer import GENERATION_FILE, JSON_FILE
from ..parts.errors import CheckpointError, ConfigError, UserError, brief
from .gguf_header import check_header
from .source import Stored
from .tokenizers import copy_tokenizer, write_settings

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# config.json's keys and the metadata's, which follow the architecture's name and which llama.cpp insists on
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
EPSILON, KEY_HEADS = "attention.layer_norm_rms_epsilon", "attention.head_count_kv"
SPECIAL = 3  # tokenizer.ggml.token_type of a control token
USER_DEFINED = 4
# what ends a turn or a message, behind what ends a text: llama.cpp stops at any of them
ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
# how a text is cut before byte pairs are merged, by tokenizer.ggml.pre
PRE_TOKENIZERS = {
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


class GGUF:
    """A `ModelSource` over a .gguf file, or the first of several that it was split into. What the metadata leaves out
    is as llama.cpp has it. Raises ConfigError for what it holds and we cannot read.
    """

    def __init__(self, path: Path):
        self.path = path
        first = _reader(path)
        self._fields = first.fields
        tensors = [tensor for reader in (first, *self._others()) for tensor in reader.tensors]
        if len(tensors) != (total := self._get("split.tensors.count", len(tensors))):
            raise CheckpointError(f"{path}: {len(tensors)} tensors in its files instead of {total}; get them all again")
        self._tensors = {_theirs(tensor.name): tensor for tensor in tensors}
        self.config = self._read_config()
        self.stored = {name: self._look_up(name, tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        from gguf import dequantize

        tensor, stored = self._tensors[name], self.stored[name]
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        values = values.reshape(stored.shape).to(stored.dtype)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        if (projection := name.split(".")[-2]) in heads:
            return unpermute(values, self.config[heads[projection]])
        return values

    def write_tokenizer(self, folder: Path) -> None:
        try:
            tokenizer, settings = self._tokenizer()
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"{self.path}: its metadata make no tokenizer ({type(error).__name__}: {brief(str(error), 200)}); get "
                "the file again"
            ) from None
        with tempfile.TemporaryDirectory() as files:
            tokenizer.save(str(Path(files) / JSON_FILE))
            write_settings(Path(files), settings)
            if len(ends := [i for i in map(self._get, ENDS) if i is not None]) > 1:
                (Path(files) / GENERATION_FILE).write_text(json.dumps({"eos_token_id": ends}))
            copy_tokenizer(Path(files), self.config, folder)

    def _others(self) -> list["GGUFReader"]:
        """The files behind the first, where there are several."""
        count, number = self._get("split.count", 1), self._get("split.no", 0)
        if count <= 1:
            return []
        stem = self.path.stem.removesuffix(f"-{number + 1:05d}-of-{count:05d}")
        files = [self.path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
        if number:
            raise ConfigError(f"{self.path}: is file {number + 1} of {count}; give the first, {files[0].name}")
        if missing := [file.name for file in files[1:] if not file.is_file()]:
            raise CheckpointError(f"{self.path}: {len(missing)} of {count} files missing: {missing[0]}; get them too")
        return [_reader(file) for file in files[1:]]

    def _get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def _read_config(self) -> dict[str, Any]:
        """The metadata as a config.json."""
        kind = self._get("general.architecture")
        if kind != "llama":
            raise ConfigError(f"{self.path}: general.architecture is {kind!r}; allowed in a GGUF file: llama")
        missing = [key for key in (*SIZES.values(), EPSILON) if f"llama.{key}" not in self._fields]
        if missing:
            raise CheckpointError(f"{self.path}: the metadata lacks llama.{missing[0]}; get the file again")
        if "model.embed_tokens.weight" not in self._tensors:
            raise CheckpointError(f"{self.path}: tensor token_embd.weight is missing; get the file again")
        for key in (*SIZES.values(), KEY_HEADS):
            if not isinstance(size := self._get(f"llama.{key}", 1), int) or size < 1:
                raise CheckpointError(f"{self.path}: llama.{key} is {brief(size)}, not a size; get the file again")
        if "rope_freqs.weight" in self._tensors:
            raise ConfigError(
                f"{self.path}: tensor rope_freqs.weight, frequencies as Llama 3.1 has them, is not read from GGUF; "
                "convert the folder of safetensors instead"
            )
        config = {theirs: self._get(f"llama.{key}") for theirs, key in SIZES.items()}
        head_dim = self._get("llama.attention.key_length") or config["hidden_size"] // config["num_attention_heads"]
        rotated = self._get("llama.rope.dimension_count", head_dim)
        return config | {
            "model_type": "llama",
            "vocab_size": int(self._tensors["model.embed_tokens.weight"].shape[1]),
            "head_dim": head_dim,
            "num_key_value_heads": self._get(f"llama.{KEY_HEADS}", config["num_attention_heads"]),
            "rms_norm_eps": _decimal(self._get(f"llama.{EPSILON}")),
            "rope_parameters": self._rope() | {"partial_rotary_factor": rotated / head_dim},
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self._tensors,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self._tensors,
        }

    def _rope(self) -> dict[str, Any]:
        kind = self._get("llama.rope.scaling.type", "linear")
        factor = self._get("llama.rope.scaling.factor", self._get("llama.rope.scale_linear", 0.0)) or 1.0
        rope = {"rope_theta": _decimal(self._get("llama.rope.freq_base", 10000.0))}
        if (by := self._get("llama.rope.scaling.attn_factor", 1.0)) != 1:
            raise ConfigError(f"{self.path}: llama.rope.scaling.attn_factor is {by}; allowed in a GGUF file: 1")
        if kind == "none" or (kind == "linear" and factor == 1):
            return rope | {"rope_type": "default"}
        if kind == "linear":
            return rope | {"rope_type": "linear", "factor": _decimal(factor)}
        raise ConfigError(f"{self.path}: llama.rope.scaling.type is {kind!r}; allowed in a GGUF file: none, linear")

    def _look_up(self, name: str, tensor: "ReaderTensor") -> Stored:
        from gguf.quants import _type_traits

        kind = tensor.tensor_type
        plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        if kind.name not in plain and kind not in _type_traits:
            readable = ", ".join([*plain, *(k.name for k in _type_traits if k.name not in plain)])
            raise ConfigError(f"{self.path}: tensor {name} has type {kind.name}; readable are {readable}")
        return Stored(tuple(int(n) for n in reversed(tensor.shape)), plain.get(kind.name, torch.float32))

    def _tokenizer(self) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
        """The byte-level BPE of the metadata, and its tokenizer_config.json."""
        kind, cut = self._get("tokenizer.ggml.model"), self._get("tokenizer.ggml.pre")
        if kind != "gpt2" or cut not in PRE_TOKENIZERS:
            raise ConfigError(
                f"{self.path}: its tokenizer is {kind!r} with pre-tokenizer {cut!r}; allowed: gpt2 with "
                f"{' or '.join(PRE_TOKENIZERS)}. Convert the folder of safetensors with its tokenizer.json instead"
            )
        tokens, merges = self._get("tokenizer.ggml.tokens"), self._get("tokenizer.ggml.merges")
        types = self._get("tokenizer.ggml.token_type") or [1] * len(tokens)
        vocab = {token: i for i, token in enumerate(tokens)}
        fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[tuple(pair.split(" ")) for pair in merges]))
        fast.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[cut]())
        fast.decoder = decoders.ByteLevel()
        added = [(t, y == SPECIAL) for t, y in zip(tokens, types, strict=True) if y in (SPECIAL, USER_DEFINED)]
        fast.add_tokens([AddedToken(token, special=special, normalized=False) for token, special in added])
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {key: self._get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}
        fast.post_processor = template(fast, *(self._around(name, ids[f"{name}_token"]) for name in ("bos", "eos")))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            **{key: tokens[i] for key, i in ids.items() if i is not None},
        }
        if chat := self._chat_templates():
            settings["chat_template"] = chat
        return fast, settings

    def _chat_templates(self) -> str | list[dict[str, str]] | None:
        """As tokenizer_config.json has them: the only one, or all with their names."""
        only = self._get("tokenizer.chat_template")
        named = {
            name: self._get(f"tokenizer.chat_template.{name}") for name in self._get("tokenizer.chat_templates", ())
        }
        if not named:
            return only
        found = {**({"default": only} if only else {}), **dict(sorted(named.items()))}
        return [{"name": name, "template": text} for name, text in found.items()]

    def _around(self, name: str, id: int | None) -> tuple[int, ...]:
        """The token of this name if it stands at its end of every prompt."""
        return (id,) if id is not None and self._get(f"tokenizer.ggml.add_{name}_token", False) else ()


def _reader(path: Path) -> "GGUFReader":
    """A file's metadata and the places of its tensors."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError(f"{path}: reading GGUF needs the gguf package; pip install 'hybridlm[hf]'") from None
    check_header(path)
    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a whole GGUF file ({error}); get the file again") from None


def unpermute(rows: Tensor, n_heads: int) -> Tensor:
    """Rows [H * D, ...] of q or k, which llama.cpp orders (0, D/2, 1, D/2 + 1, ...) in each head, put in order."""
    return rows.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _theirs(name: str) -> str:
    """transformers' name of a GGUF tensor; unknown ones keep theirs, for the error that will name them."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found and found[2] in INSIDE:
        return f"model.layers.{found[1]}.{INSIDE[found[2]]}.{found[3]}"
    return name


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))
