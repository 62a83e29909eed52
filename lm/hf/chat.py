"""A checkpoint's chat template: messages as the text that the model was tuned on.

Found and rendered as transformers does it: chat_template.jinja before the `chat_template` of tokenizer_config.json;
more templates by name in additional_chat_templates/, or as a list in the configuration; in a sandbox.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..data.tokenizer import CONFIG_FILE
from ..parts.errors import ConfigError
from ..run import Run
from .config_file import read_json

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"
DEFAULT = "default"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = dict[str, str]
"""`role` (system, user, assistant, ...) and `content`."""


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja templates by name, and the special tokens that they may write, by theirs (bos_token, ...)."""

    where: str
    templates: dict[str, str]
    tokens: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> Self:
        """The templates that lie beside a run's tokenizer; there may be none."""
        folder = run.folder / "tokenizer"
        settings = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
        return cls(str(run.folder), _templates(folder, settings), _tokens(settings))

    def text(self, name: str | None = None) -> str:
        """The template called `name`, by default the default or the only one.

        Raises ConfigError, which lists the names there are, when there is none of it.
        """
        if not self.templates:
            raise ConfigError(
                f"run {self.where!r}: its tokenizer has no chat template; leave out --chat (lm-eval: "
                f"--apply_chat_template), or put a {FILE} into {Path(self.where) / 'tokenizer'}"
            )
        if name is None and len(self.templates) == 1:
            return next(iter(self.templates.values()))
        if (name or DEFAULT) not in self.templates:
            raise ConfigError(
                f"run {self.where!r}: no chat template {name or DEFAULT!r}; there are: {', '.join(self.templates)}"
            )
        return self.templates[name or DEFAULT]

    def render(self, messages: list[Message], *, name: str | None = None, answer_follows: bool = True) -> str:
        """`messages` as one text, special tokens included: with the head of the answer that is to come, or, without
        answer_follows, up to the end of the last message's content, to be gone on with.

        A template that knows no system role is given the messages without. Raises ConfigError when there is no template
        or it refuses the messages.
        """
        import jinja2

        template = self.text(name)
        try:
            return self._render(template, messages, answer_follows)
        except jinja2.TemplateError as error:
            spoken = [message for message in messages if message["role"] != "system"]
            if len(spoken) == len(messages):
                raise ConfigError(f"run {self.where!r}: its chat template refuses these messages: {error}") from None
        return self.render(spoken, name=name, answer_follows=answer_follows)

    def _render(self, template: str, messages: list[Message], answer_follows: bool) -> str:
        try:
            from transformers.utils.chat_template_utils import render_jinja_template
        except ImportError:
            raise ConfigError("chat templates need the transformers package; pip install 'hybridlm[hf]'") from None

        rendered: Any = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=answer_follows,
            continue_final_message=not answer_follows,
            **self.tokens,
        )
        return rendered[0][0]


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    files = {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja"))}
    if (folder / FILE).is_file():
        files[DEFAULT] = folder / FILE
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    given = settings.get("chat_template") or {}
    if isinstance(given, list):
        return {one["name"]: one["template"] for one in given}
    return given if isinstance(given, dict) else {DEFAULT: given}


def _tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """The special tokens that have a name; each is a string or a record with `content`."""
    found = {name: settings[name] for name in NAMES if settings.get(name)}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
