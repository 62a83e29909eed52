"""`hybridlm generate`: where a text ends, how it joins its prompt, and what is refused in one line."""

import io
import json
import sys

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from hybridlm.lm.data.tokenizer import SentencePiece, Tokenizer
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.model.generate import decode
from hybridlm.lm.model.loading import load_run
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.run import Run
from hybridlm.tests.hf.llamas import VOCAB, save
from hybridlm.tools import cli
from hybridlm.tools.sample import stream


@pytest.fixture
def run(tmp_path) -> Run:
    save(tmp_path / "src", num_hidden_layers=1)
    return import_checkpoint(tmp_path / "src", tmp_path / "run")


def written(run: Run, prompt: str = "the cat", n: int = 12, **how) -> str:
    pieces: list[str] = []
    options = {"temperature": 0.0, "top_p": 1.0, "seed": 0, **how}
    stream(run.folder, prompt, n, **options, write=pieces.append)
    assert pieces[0] == prompt
    return "".join(pieces[1:])


def drawn(run: Run, prompt: str = "the cat", n: int = 12) -> list[int]:
    """The likeliest ids that have a token."""
    tokenizer = run.tokenizer()
    ids = torch.tensor([tokenizer.encode_prompt(prompt) or [tokenizer.prefix_id]])
    found = load_run(run, "cpu").generate(ids, n, temperature=0, vocab_size=tokenizer.vocab_size)
    return found[0, ids.shape[1] :].tolist()


def prefer(run: Run, rows: list[int]) -> None:
    """Make these ids the likeliest, whatever came before."""
    path = run.newest_checkpoint() / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][rows] *= 50
    save_file(weights, path)


def use_sentencepiece(run: Run, vocab_size: int) -> Tokenizer:
    """A tokenizer in the manner of Llama 2, which decodes the first token of a text without its space."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat and that was that"] * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer(SentencePiece(model.getvalue(), "m"))
    for file in (run.folder / "tokenizer").iterdir():
        file.unlink()
    tokenizer.save(run.folder / "tokenizer")
    return tokenizer


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(run):
    tokenizer = use_sentencepiece(run, 40)
    assert tokenizer.vocab_size < VOCAB
    prefer(run, list(range(tokenizer.vocab_size, VOCAB)))
    for how in ({}, {"temperature": 1.0, "seed": 2**64 - 1}):
        text = written(run, **how)
        assert text and set(text) <= set("abcdefghijklmnopqrstuvwxyz \u2047")  # U+2047 stands for unk


def test_a_text_reads_on_from_its_prompt_as_the_whole_does(run):
    tokenizer = use_sentencepiece(run, 40)
    space = next(i for i in range(tokenizer.vocab_size) if tokenizer.decode([5, i]).endswith(" the"))
    prefer(run, [space])
    ids = [*tokenizer.encode_prompt("that cat"), *drawn(run, "that cat")]
    assert "that cat" + written(run, "that cat") == tokenizer.decode(ids)


def test_a_text_ends_at_any_of_its_ends(run):
    ids, tokenizer = drawn(run), run.tokenizer()
    assert written(run) == tokenizer.decode(ids)
    end = next(i for i in range(4, 12) if ids[i] not in ids[:i])
    src = run.folder.parent / "src"
    (src / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, ids[end]]}))
    assert written(import_checkpoint(src, src.parent / "again")) == tokenizer.decode(ids[:end])


def test_an_empty_prompt_gives_a_text_from_its_beginning(run):
    assert written(run, "") == run.tokenizer().decode(drawn(run, ""))
    assert written(run, n=0) == ""


def command(run: Run, *options: str, monkeypatch, capsys) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["hybridlm", "generate", str(run.folder), *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr()
    assert "Traceback" not in out.err and not out.out
    return int(end.value.code or 0), out.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "0"], "top_p: 0.0 is outside (0, 1]; 1 keeps every token"),
        (["--top-p", "nan"], "top_p: nan is outside (0, 1]; 1 keeps every token"),
        (["--temperature", "nan"], "temperature: nan is no number; use 0 for the most likely token, or more"),
        (["--temperature", "inf"], "temperature: inf is no number; use 0 for the most likely token, or more"),
        (["--temperature", "-1"], "temperature: -1.0 is negative; use 0 for the most likely token, or more"),
        (["--seed", str(2**64)], "seed: 18446744073709551616 is outside 0 ... 2^64 - 1; use one of these"),
        (["--seed", "-1"], "seed: -1 is outside 0 ... 2^64 - 1; use one of these"),
        (["--max-new-tokens", "-1"], "max_new_tokens: -1 is negative; use 0 or more"),
        (["--prompt", "a\udc80"], r"prompt: 'a\udc80' holds bytes that are no UTF-8; give a text"),
    ],
)
def test_impossible_options_are_one_line(run, options, message, monkeypatch, capsys):
    prompt = [] if "--prompt" in options else ["--prompt", "the"]
    assert command(run, *prompt, *options, monkeypatch=monkeypatch, capsys=capsys) == (1, f"hybridlm: {message}\n")


def test_a_prompt_beyond_rotary_attention_is_continued_with_one_line_of_caution(run, monkeypatch, capsys):
    options = ["--prompt", "the cat sat " * 60, "--max-new-tokens", "3", "--temperature", "0"]
    monkeypatch.setattr(sys, "argv", ["hybridlm", "generate", str(run.folder), *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    code, err = end.value.code, capsys.readouterr().err
    assert code in (0, None) and err == (
        "hybridlm: the text goes on beyond the 64 tokens that the model was trained on at a time (model.context); what "
        "it writes from there may make no sense\n"
    )


def test_nothing_is_written_before_a_prompt_is_found_too_long(run, monkeypatch):
    def refuse(*_):
        raise ConfigError("too long")

    pieces: list[str] = []
    monkeypatch.setattr("hybridlm.lm.model.generate._room", refuse)
    with pytest.raises(ConfigError, match=r"^too long$"):
        stream(run.folder, "the", 5, 0.0, 1.0, 0, pieces.append)
    assert not pieces


def test_a_message_is_put_into_the_chat_template_and_the_answer_alone_is_written(run, monkeypatch):
    """The template's own tokens are all that stands around the message, as with transformers' apply_chat_template."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (run.folder / "tokenizer" / "chat_template.jinja").write_text(template)
    asked: list[list[int]] = []

    def note(model, ids, *args, **options):
        asked.extend(ids.tolist())
        return decode(model, ids, *args, **options)

    monkeypatch.setattr("hybridlm.tools.sample.decode", note)
    answer: list[str] = []
    stream(run.folder, "the", 5, 0.0, 1.0, 0, answer.append, chat=True)
    assert asked == [run.tokenizer().encode("user: the\nassistant:")]
    assert "".join(answer) and "assistant:" not in "".join(answer)


def test_a_run_without_a_chat_template_says_so(run):
    with pytest.raises(ConfigError, match="its tokenizer has no chat template; leave out --chat"):
        stream(run.folder, "the", 5, 0.0, 1.0, 0, print, chat=True)
