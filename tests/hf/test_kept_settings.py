"""What an import keeps of its source beside weights and ids: how it is asked, chat templates, how its texts end."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from hybridlm.lm.data.specials import SPECIALS_FILE, Specials
from hybridlm.lm.data.tokenizer import Tokenizer, train_tokenizer
from hybridlm.lm.hf.importing import import_checkpoint
from hybridlm.lm.parts.errors import DataError
from hybridlm.lm.run import Run
from hybridlm.tests.hf.llamas import save, save_tokenizer
from hybridlm.tests.hf.tokenizer_kinds import TEXTS, around
from hybridlm.tools import sample
from hybridlm.tools.export import export_run
from hybridlm.tools.pretrain import _asked_with

GENERATION = {"eos_token_id": [1, 5, 7], "bos_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.95}
TEMPLATES = {
    "chat_template.jinja": "{{ messages[0].content }}!",
    "chat_template.json": json.dumps({"chat_template": "{{ messages[0].content }}?"}),
    "additional_chat_templates/tools.jinja": "{{ messages[0].content }} with tools",
}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def src(tmp_path):
    save(tmp_path / "src")
    return tmp_path / "src"


def exported(run: Run, folder: Path) -> Path:
    from rich.console import Console

    export_run(run.folder, folder, "auto", None, Console(quiet=True))
    return folder


def test_every_end_of_text_and_the_sampling_settings_come_back(src, tmp_path):
    (src / "generation_config.json").write_text(json.dumps(GENERATION))
    run = import_checkpoint(src, tmp_path / "run")
    assert run.tokenizer().stop_ids == (1, 5, 7)
    out = exported(run, tmp_path / "out")
    found = GenerationConfig.from_pretrained(out)
    assert {key: getattr(found, key) for key in GENERATION} == GENERATION
    assert import_checkpoint(out, tmp_path / "again").tokenizer().stop_ids == (1, 5, 7)


def test_one_end_of_text_stays_a_number(src, tmp_path):
    (src / "generation_config.json").unlink()
    out = exported(import_checkpoint(src, tmp_path / "run"), tmp_path / "out")
    found = json.loads((out / "generation_config.json").read_text())
    assert found == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@pytest.mark.parametrize("named", [None, "{{ messages[0].content }}.", [{"name": "default", "template": "{{ 1 }}"}]])
def test_chat_templates_survive_import_export_and_import_again(src, tmp_path, named):
    save_tokenizer(src, **({"chat_template": named} if named else {}))
    if named is None:
        for name, content in TEMPLATES.items():
            (src / name).parent.mkdir(exist_ok=True)
            (src / name).write_text(content)
    run = import_checkpoint(src, tmp_path / "run")
    out = exported(run, tmp_path / "out")
    again = import_checkpoint(out, tmp_path / "again").folder / "tokenizer"
    expected = AutoTokenizer.from_pretrained(src)
    for folder in (run.folder / "tokenizer", out, again):
        kept = AutoTokenizer.from_pretrained(folder)
        assert kept.chat_template == expected.chat_template
        assert kept.apply_chat_template(HI, tokenize=False) == expected.apply_chat_template(HI, tokenize=False)
        for name, content in TEMPLATES.items() if named is None else ():
            assert (folder / name).read_text() == content


@pytest.mark.parametrize(("template", "add"), [("$A", False), ("$A", None), ("<s> $A", False), ("<s> $A </s>", None)])
def test_an_old_import_is_asked_as_its_files_say(src, tmp_path, template, add):
    """As imports were written before: copies of tokenizer.json and settings, and no file that says how to ask."""
    around(save_tokenizer(src, add_bos_token=add), template).save(str(src / "tokenizer.json"))
    run = import_checkpoint(src, tmp_path / "run")
    (run.folder / "tokenizer" / SPECIALS_FILE).unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run.folder / "tokenizer" / name).write_bytes((src / name).read_bytes())
    for folder in (src, exported(run, tmp_path / "out")):
        assert run.tokenizer().encode_prompt("the cat") == AutoTokenizer.from_pretrained(folder)("the cat").input_ids


def test_an_old_import_of_a_gguf_file_that_wants_bos_keeps_it(tmp_path):
    """Its tokenizer.json has no post-processor; the settings say it."""
    save_tokenizer(tmp_path, add_bos_token=True)
    assert Tokenizer.load(tmp_path, imported=True).front == (0,)


def test_an_old_import_of_a_sentencepiece_model_has_bos_unless_its_settings_say_no(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path, imported=True).front == (1,)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert Tokenizer.load(tmp_path, imported=True).front == ()
    assert Tokenizer.load(tmp_path).front == (1,)


@pytest.mark.parametrize("template", ["$A", "<s> $A </s>"])
def test_training_an_import_further_leaves_how_it_is_asked(src, tmp_path, template):
    tokenizer = around(save_tokenizer(src), template)
    tokenizer.save(str(src / "tokenizer.json"))
    run = import_checkpoint(src, tmp_path / "run")
    expected = AutoTokenizer.from_pretrained(src)("the cat").input_ids
    path = run.recipe.data.tokenizer.path
    assert path is not None
    packed_with = Tokenizer.load(path).for_training("text")
    ids = packed_with.encode("the cat")
    assert packed_with.encode_documents(["the cat"]) == [[0, *ids, 1]]  # documents are told apart by BOS and EOS
    assert packed_with.encode_prompt("the cat") == [0, *ids]
    kept = _asked_with(run, packed_with)
    kept.save(run.folder / "tokenizer")
    assert kept.encode_prompt("the cat") == run.tokenizer().encode_prompt("the cat") == expected
    other = train_tokenizer(TEXTS, 300)
    assert _asked_with(run, other) is other


def test_a_prompt_of_the_command_line_is_what_the_source_would_read(src, tmp_path, monkeypatch):
    run = import_checkpoint(src, tmp_path / "run")
    seen = []
    monkeypatch.setattr(sample, "decode", lambda model, ids, *_, **__: seen.extend(ids.tolist()) or iter(()))
    for prompt in ("the cat", "</s>the", ""):
        sample.stream(run, prompt, 5, 0.0, 1.0, 0, lambda text: None)
    theirs = AutoTokenizer.from_pretrained(src)
    assert seen == [theirs("the cat").input_ids, theirs("</s>the").input_ids, [theirs.bos_token_id]]


def test_a_damaged_file_is_one_clear_error(tmp_path):
    train_tokenizer(TEXTS, 300).save(tmp_path)
    (tmp_path / SPECIALS_FILE).write_text('{"bos_id": 1}')
    with pytest.raises(DataError, match=r"prompts\.json: cannot be read"):
        Tokenizer.load(tmp_path)


def test_what_stands_around_a_prompt_is_read_back(tmp_path):
    asked = Specials(1, 2, (5, 1), (2,), 1, (2, 7))
    asked.save(tmp_path)
    assert Specials.load(tmp_path) == asked
    Specials.own(1, 2).save(tmp_path)
    assert Specials.load(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_run_of_our_own_has_bos_whatever_its_tokenizer_file_says(tmp_path):
    tokenizer = around(save_tokenizer(tmp_path, add_bos_token=False), "$A </s>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION))
    own = Tokenizer.load(tmp_path / "tokenizer.json").for_training("text")
    assert (own.front, own.back, own.stop_ids) == ((0,), (), (1,))
    own.save(tmp_path / "run")
    again = Tokenizer.load(tmp_path / "run")
    assert (again.front, again.back, again.stop_ids) == ((0,), (), (1,))
