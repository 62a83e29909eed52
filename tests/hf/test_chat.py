"""Chat templates that lie beside a tokenizer, against transformers on the same files."""

import json

import pytest
import tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer

from hybridlm.lm import Recipe
from hybridlm.lm.hf.chat import ChatTemplate
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.run import Run

TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello [b]{{ 1 + 1 }}"},
    {"role": "assistant", "content": "Hi"},
]


@pytest.fixture
def run(tmp_path):
    """A run folder with a tokenizer that transformers reads too; its settings are to be added."""
    folder = tmp_path / "a run"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(Recipe.load("demo").to_yaml())
    fast = tokenizers.Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    fast.save(str(folder / "tokenizer" / "tokenizer.json"))
    return Run(folder)


def settings(run, **values):
    known = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
    }
    (run.folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**known, **values}))


def theirs(run, messages, **options):
    return AutoTokenizer.from_pretrained(run.folder / "tokenizer").apply_chat_template(
        messages, tokenize=False, **options
    )


def in_the_settings(run):
    settings(run, chat_template="{{ bos_token }}" + TURNS + OPEN)


def as_a_file_that_wins(run):
    settings(run, chat_template="not this one")
    (run.folder / "tokenizer" / "chat_template.jinja").write_text(TURNS + OPEN)


def as_a_list_with_a_default(run):
    settings(run, chat_template=[{"name": "default", "template": TURNS + OPEN}, {"name": "rag", "template": "no"}])


def as_files_in_a_folder(run):
    as_a_file_that_wins(run)
    (run.folder / "tokenizer" / "additional_chat_templates").mkdir()
    (run.folder / "tokenizer" / "additional_chat_templates" / "rag.jinja").write_text("rag" + TURNS)


@pytest.mark.parametrize(
    "place", [in_the_settings, as_a_file_that_wins, as_a_list_with_a_default, as_files_in_a_folder]
)
def test_messages_become_the_text_that_transformers_makes_of_them(run, place):
    place(run)
    chat = ChatTemplate.of(run)
    assert chat.render(TALK[:2]) == theirs(run, TALK[:2], add_generation_prompt=True)
    assert chat.render(TALK, answer_follows=False) == theirs(run, TALK, continue_final_message=True)
    assert "Hello [b]{{ 1 + 1 }}" in chat.render(TALK[:2])
    assert chat.render(TALK, answer_follows=False).endswith("Hi")


def test_a_template_is_had_by_its_name(run):
    as_files_in_a_folder(run)
    chat = ChatTemplate.of(run)
    assert chat.render(TALK, name="rag") == theirs(run, TALK, chat_template="rag") and chat.text("rag") == "rag" + TURNS
    with pytest.raises(ConfigError, match=r"no chat template 'tool'; there are: rag, default"):
        chat.render(TALK, name="tool")


def test_a_template_without_a_system_role_is_given_the_rest(run):
    settings(run, chat_template=NO_SYSTEM + TURNS)
    assert ChatTemplate.of(run).render(TALK) == theirs(run, TALK[1:])


def test_a_template_that_refuses_and_none_at_all_are_one_line(run):
    settings(run, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ConfigError, match=r"its chat template refuses these messages: roles must alternate$"):
        ChatTemplate.of(run).render(TALK)
    settings(run)
    with pytest.raises(ConfigError, match=r"a run': its tokenizer has no chat template; leave out --chat"):
        ChatTemplate.of(run).render(TALK)


def test_a_template_runs_in_a_sandbox(run):
    settings(run, chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ConfigError, match="refuses these messages: access to attribute"):
        ChatTemplate.of(run).render(TALK)
