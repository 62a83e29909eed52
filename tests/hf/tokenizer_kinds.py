"""Small tokenizers of every kind that is read, as the folders that hold published models."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "the cat sat on the mat and that was that, 0123456789\n",
    "\tnaïve “quotes” and é, 日本 don't",
    "a  b   c\n\n",
] * 9
ADDED = ["<|im_start|>", "<|im_end|>"]


def sentencepiece_model(vocab_size: int = 330, **options: Any) -> bytes:
    """A SentencePiece BPE as Llama 2's: a space in front, <unk> <s> </s>, bytes."""
    model = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": vocab_size, "byte_fallback": True, "minloglevel": 2}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options}
    lines = (line for text in TEXTS for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **settings)
    return model.getvalue()


def byte_level(specials: tuple[str, ...] = ("<s>", "</s>"), prefix: bool = False) -> Tokenizer:
    """A byte-level BPE as GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def around(made: Tokenizer, template: str) -> Tokenizer:
    """With a post-processor such as "<s> $A </s>"."""
    names = [(name, made.token_to_id(name)) for name in set(template.split()) - {"$A"}]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=names)
    return made


def metaspace() -> Tokenizer:
    """Llama 2's as a tokenizers file: a normalizer puts the space in front."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>", *bytes_]
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # in training only: no piece spans two words
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=specials, show_progress=False))
    content = json.loads(made.to_str()) | {"pre_tokenizer": None}
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in bytes_]
    return around(Tokenizer.from_str(json.dumps(content)), "<s> $A")


def write(folder: Path, tokenizer: Tokenizer | bytes, settings: dict[str, Any] | None, kind: str = "llama") -> None:
    """The folder of a published model, without its weights. kind: its model type."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, bytes):
        (folder / "tokenizer.model").write_bytes(tokenizer)
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))


NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES}
LLAMA = {"tokenizer_class": "LlamaTokenizer", **NAMES, "unk_token": "<unk>"}


def _special(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": token, "special": True, **flags}


def _added(settings: dict[str, Any], first: int) -> dict[str, Any]:
    return {**settings, "added_tokens_decoder": {str(first + i): _special(token) for i, token in enumerate(ADDED)}}


def _added_file(folder: Path) -> None:
    write(folder, sentencepiece_model(), {**LLAMA, "add_bos_token": True})
    (folder / "added_tokens.json").write_text(json.dumps({token: 330 + i for i, token in enumerate(ADDED)}))


def _with_words(made: Tokenizer) -> Tokenizer:
    """Added tokens that are not special: they take white space, or are found in the normalised text."""
    made.add_tokens([AddedToken("cat", normalized=False, lstrip=True), AddedToken("[X]", normalized=True)])
    return made


QWEN = ("<|endoftext|>", *ADDED)
SOURCES: dict[str, Callable[[Path], None]] = {
    "no policy": lambda at: write(at, byte_level(), FAST),
    "BOS by template": lambda at: write(at, around(byte_level(), "<s> $A"), FAST),
    "BOS and EOS by template": lambda at: write(at, around(byte_level(), "<s> $A </s>"), FAST),
    "EOS alone by template": lambda at: write(at, around(byte_level(), "$A </s>"), {**FAST, "bos_token": None}),
    "a template, and settings against it": lambda at: write(
        at, around(byte_level(), "<s> $A"), {**FAST, "add_bos_token": False}
    ),
    "settings that want BOS, and no template": lambda at: write(at, byte_level(), {**FAST, "add_bos_token": True}),
    "settings that want BOS and EOS, and no template": lambda at: write(
        at, byte_level(), {**FAST, "add_bos_token": True, "add_eos_token": True}
    ),
    "BOS wanted and none named": lambda at: write(
        at, byte_level(), {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "add_bos_token": True}
    ),
    "special tokens split": lambda at: write(at, byte_level(), {**FAST, "split_special_tokens": True}),
    "no settings": lambda at: write(at, around(byte_level(), "<s> $A"), None),
    "tokens added in settings": lambda at: write(at, byte_level(), _added(FAST, 300)),
    "added words": lambda at: write(at, _with_words(byte_level()), FAST),
    "a space in front": lambda at: write(at, byte_level(prefix=True), FAST),
    "GPT-2": lambda at: write(
        at, byte_level(("<|endoftext|>",)), {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False}
    ),
    "Qwen2": lambda at: write(
        at, byte_level(QWEN), {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}, "qwen2"
    ),
    "Llama, tokenizers": lambda at: write(at, metaspace(), {**LLAMA, "add_bos_token": True}),
    "Llama, tokenizers as they are": lambda at: write(at, metaspace(), FAST),
    "Llama, SentencePiece": lambda at: write(at, sentencepiece_model(), {**LLAMA, "add_bos_token": True}),
    "Llama, SentencePiece, no BOS": lambda at: write(at, sentencepiece_model(), {**LLAMA, "add_bos_token": False}),
    "Llama, SentencePiece, tokens added": lambda at: write(
        at, sentencepiece_model(), _added({**LLAMA, "add_bos_token": True, "add_eos_token": True}, 330)
    ),
    "Llama, SentencePiece, file of added tokens": _added_file,
    "Mistral, SentencePiece": lambda at: write(at, sentencepiece_model(), LLAMA, "mistral"),
    "SentencePiece alone": lambda at: write(at, sentencepiece_model(), None),
    "Unigram": lambda at: write(at, sentencepiece_model(model_type="unigram", hard_vocab_limit=False), FAST),
}
