"""Reading and writing YAML that holds settings.

It is read as YAML 1.2 says: only `true` and `false` are booleans, so that the languages no and on stay texts; 1e3 and
5e-4 are numbers; a date is a text. A key that stands twice is refused, and so is what a few lines could blow up: deep
nesting, and aliases that repeat one another.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml import MappingNode, Node, ScalarNode
from yaml.constructor import ConstructorError
from yaml.reader import Reader

from flare_ds.exceptions import ConfigError, together
from flare_ds.text_file import read_text

_DEEPEST = 50
_MOST_VALUES = 100_000
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser is ten times faster, where it is built in
_TAG = "tag:yaml.org,2002:"
_QUOTE = "correct that line; put text that has one of : # % @ ` * & ! [ ] { } in it in quotes"

_PLAIN = {  # what a text without quotes may be, other than a text
    "merge": "<<",
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_RESOLVERS = [(_TAG + kind, re.compile(f"(?:{form})$(?!\n)")) for kind, form in _PLAIN.items()]


def _whole_number(text: str) -> int:
    number = int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if abs(number) >= 2**63:
        raise ValueError(text)
    return number


_READ: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _whole_number,
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}


def _construct_scalar(loader: Any, node: ScalarNode) -> Any:
    kind = node.tag.removeprefix(_TAG)
    try:
        return _READ[kind](loader.construct_scalar(node))
    except (ValueError, KeyError):
        raise ConstructorError(None, None, f"{node.value[:50]!r} is no {kind} of 64 bits", node.start_mark) from None


@lru_cache(maxsize=4096)
def _plain_tag(text: str) -> str:
    """What a text without quotes is; kept, since a thousand configs say nearly the same."""
    return next((tag for tag, form in _RESOLVERS if form.match(text)), f"{_TAG}str")


class _Loader(_BASE):
    """PyYAML's safe loader with the scalars of YAML 1.2, and no tags beyond them."""

    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {
        **{_TAG + kind: _construct_scalar for kind in _READ},
        **{_TAG + kind: _BASE.yaml_constructors[_TAG + kind] for kind in ("str", "seq", "map")},
        None: _BASE.yaml_constructors[None],
    }

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Any:
        """The tag of a node that has none."""
        is_plain = kind is ScalarNode and implicit[0]
        return _plain_tag(value) if is_plain else super().resolve(kind, value, implicit)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.1 or 1.2 would not read as a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: _RESOLVERS,
    }


def read_yaml(path: Path, *, like: str = "one of launchers/configs/") -> dict[str, Any]:
    """Read a file that holds a YAML mapping; `like` says what one can be begun from.

    Raises:
        ConfigError: the file is missing, is not YAML, names a key twice, or is not a mapping.
    """
    settings = parse_yaml(read_text(path, named=f"the config {path}"), origin=str(path))
    if not isinstance(settings, dict):
        found = "" if settings is None else f" (found {settings!r:.200})"
        raise ConfigError(f"{path} holds no settings{found}", fix=f"start from {like}")
    return settings


def parse_yaml(text: str, *, origin: str) -> Any:
    """Read one YAML document; messages call it `origin`.

    Raises:
        ConfigError: it is not YAML, names a key twice, or is nested too deeply; naming the line.
    """
    odd = Reader.NON_PRINTABLE.search(text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise ConfigError(
            f"{origin} has {odd[0]!r} in line {line}, which YAML does not allow", fix="remove it, or save as UTF-8"
        )
    try:
        return _construct(text, origin)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        written = (text.splitlines() or [""])[line:][:1] or [""]
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            f"{origin} is not valid YAML: line {line + 1} ({written[0].strip()[:80]!r}): {problem}",
            fix="indent with spaces, not with a tab" if "\t" in written[0] else _QUOTE,
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {error}", fix=_QUOTE) from error


def parse_value(text: str, *, origin: str) -> Any:
    """Read a value of which every character counts: where YAML would drop what follows ` #`, it is refused."""
    value = parse_yaml(text, origin=origin)
    node = yaml.compose(text, Loader=_Loader)
    if node is not None and node.end_mark.index < len(text.rstrip()):
        dropped = text[node.end_mark.index :].strip()
        raise ConfigError(f"{origin}: YAML reads {dropped!r} as a comment", fix="remove it, or put the text in quotes")
    return value


def dump_yaml(settings: dict[str, Any]) -> str:
    """Settings as YAML that is read back as it was, in key order as given."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)


def _construct(text: str, origin: str) -> Any:
    _check_depth(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # As many values as letters, unless there are aliases: those repeat what has a name, with &.
        if ("&" in text or len(text) > _MOST_VALUES) and _weigh(node, {}) > _MOST_VALUES:
            problem = f"{origin} has more than {_MOST_VALUES} values once its aliases (*name) are expanded"
            raise ConfigError(problem, fix="write the settings without aliases")
        repeated = list(_repeated(node, ""))
        if repeated:
            raise together([ConfigError(f"{problem} of {origin}", fix="keep one") for problem in repeated], origin)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_depth(text: str) -> None:
    """Refuse deep nesting while it is only read: composing it would end the process."""
    depth = 0
    event: Any
    for event in yaml.parse(text, Loader=_BASE):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.MarkedYAMLError(None, None, f"nested more than {_DEEPEST} deep", event.start_mark)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return [] if isinstance(node, ScalarNode) else node.value


def _weigh(node: Node, known: dict[int, int]) -> int:
    """How many values a node has, those of its aliases counted wherever they stand."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # where a node holds itself, it never ends
        known[id(node)] = 1 + sum(_weigh(child, known) for child in _children(node))
    return known[id(node)]


def _repeated(node: Node, name: str) -> Iterator[str]:
    """The keys that stand twice in one mapping, with both lines."""
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, MappingNode) else ():
        inner = f"{name}.{key.value}" if name else str(key.value)
        line = key.start_mark.line + 1
        if isinstance(key, ScalarNode) and key.value in lines:
            yield f"key {inner!r} occurs twice, in lines {lines[key.value]} and {line}"
        lines[str(key.value)] = line
        yield from _repeated(value, inner)
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        yield from _repeated(item, name)
