"""YAML as recipes are written in it: the core schema of YAML 1.2, with what would hide a mistake refused.

`1e-3` is a number and `010` is ten; `yes`, `no` and dates are text. Refused, with the line: a key that stands twice or
is no text, tags, merge keys, control characters, integers beyond 64 bits, and texts that are or grow too large.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

from ..parts.errors import ConfigError, brief

LONGEST = 1 << 18  # bytes of a text
DEEPEST = 32  # levels of a tree
MOST = 50_000  # values of a tree, those that an alias repeats counted each time

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_RESOLVERS = [(_TAG + kind, re.compile(f"^(?:{pattern})$")) for kind, pattern in _CORE.items()]


def read_yaml(text: str) -> Any:
    """The value that a text writes down. Raises ConfigError, one line that names the text's own line."""
    if len(text) > LONGEST:
        raise ConfigError(f"is {len(text):,} characters long; give at most {LONGEST:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        for part in _parts(node):
            _check(part)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None


def write_yaml(value: Any) -> str:
    """The text of a value; text that any version of YAML would read as something else is quoted."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {None: _RESOLVERS}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise _refused(event, f"the tag {brief(tag)} is not read; leave it out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise _refused(event, f"nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        if len(text) > 24 or not -(1 << 63) <= (value := int(text, base)) < 1 << 64:
            raise _refused(node, f"{brief(text)} is beyond 64 bits")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.yaml_constructors = {
    **{_TAG + kind: getattr(_Loader, f"construct_yaml_{kind}") for kind in (*_CORE, "str", "seq", "map")},
    None: yaml.SafeLoader.construct_undefined,
}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for a number, a boolean, a date or nothing."""

    yaml_implicit_resolvers: ClassVar = yaml.SafeDumper.yaml_implicit_resolvers | {None: _RESOLVERS}


def _parts(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node of a tree, one that an alias repeats as often as it does."""
    waiting = [(root, 1)]
    for _ in range(MOST):
        if not waiting:
            return
        node, depth = waiting.pop()
        if depth > DEEPEST:
            raise _refused(node, f"nested deeper than {DEEPEST} levels, through an alias of what holds it")
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting.extend((part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend((part, depth + 1) for part in node.value)
    if waiting:
        raise ConfigError(f"holds more than {MOST:,} values, aliases counted each time; write fewer")


def _check(node: yaml.Node) -> None:
    """Raises ConfigError for keys that stand twice or are no names, and for text that nobody can see."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a key is a name, not a list or a mapping")
            if key.value == "<<" and key.style is None:
                raise _refused(key, "the merge key << is not read; use extends:, or write the values out")
            if key.tag != _TAG + "str":
                raise _refused(key, f"the key {brief(key.value)} is read as a {key.tag.removeprefix(_TAG)}; quote it")
            if key.value in lines:
                raise _refused(key, f"the key {brief(key.value)} stands in line {lines[key.value]} already; keep one")
            lines[key.value] = key.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        hidden = [x for x in node.value if x not in "\t\n\r" and unicodedata.category(x) in ("Cc", "Cs")]
        if hidden:
            raise _refused(node, f"a control character, U+{ord(hidden[0]):04X}, in a value; leave it out")


def _refused(place: Any, what: str) -> ConfigError:
    """The error of a node or an event."""
    return ConfigError(f"line {place.start_mark.line + 1}: {what}")
