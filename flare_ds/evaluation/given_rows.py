"""What is to be predicted, as the user gives it: a pair on the command line, a file of rows, or texts in Python.

    --file pairs.jsonl     {"id": "7", "target": "Czekałem", "source": "I waited"}
                           {"id": "8", "target": "Wspaniale"}                          no source: read alone
    several fields         {"target": {"question": "...", "context": "..."}}
    several sources        {"target": "Czekałem", "source": ["I waited", null]}        in the order of the config

Cells of a CSV are texts; one that means several fields or sources is written in JSON or YAML, as on the command line.
Columns of other names are not read; without an `id` a row is called by its number.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from flare_ds.config import Config
from flare_ds.data.parallel import ParallelRow, Side
from flare_ds.exceptions import ConfigError, DataError, FlareError
from flare_ds.failures import say
from flare_ds.tasks.base import Answer, Task
from flare_ds.tasks.cells import read_id
from flare_ds.tasks.check import is_text
from flare_ds.tasks.records import Record, open_file

COLUMNS = ("id", "target", "source")
Text = str | Mapping[str, str]
"""A text; of a task of several fields, the fields by name."""


def given_pair(
    config: Config, task: Task, *, target: str | None, sources: Sequence[str], translate: bool = False
) -> ParallelRow:
    """The texts of the command line as a row.

    Args:
        config: of the run.
        task: the run's.
        target: the text; may be left out where the method reads the source only.
        sources: the same text in each source language that the method reads, in the order of the config.
        translate: whether the target is to be translated, and no source is given.

    Raises:
        ConfigError: a text is missing or empty, or does not say the task's fields.
    """
    languages = config.sources_read
    if languages and len(sources) != len(languages) and not translate:
        raise ConfigError(
            f"method={config.method} needs a source text for each of: {', '.join(languages)}; got {list(sources)}",
            fix='pass --source "TEXT" once for each, in that order; or --translate',
        )
    texts = [None] * len(languages) if translate else sources[: len(languages)]
    sides = tuple(None if text is None else _option(task, text, "--source") for text in texts)
    if target is None:
        if translate:
            raise ConfigError("--translate has nothing to translate", fix='pass --target "TEXT", or --file')
        if config.recipe.reads != "source":
            raise ConfigError(f"method={config.method} reads the target text", fix='pass --target "TEXT", or --file')
        assert sides[0] is not None
        return _row(task, "given", sides, sides[0])
    return _row(task, "given", sides, _option(task, target, "--target"))


def read_rows(config: Config, task: Task, path: Path) -> list[ParallelRow]:
    """The rows of a file (.jsonl, .json, .csv or .parquet), in its order; the run's method says what is read of one.

    Raises:
        DataError: the file cannot be read or has no rows, or a cell is not what it should be (naming file, row and
            column).
    """
    rows = [row_of(config, task, record, str(number)) for number, record in enumerate(open_file(path, COLUMNS))]
    if not rows:
        raise DataError(f"{path} has no rows", fix="give it at least one")
    return rows


def tell_unfused(config: Config, rows: Sequence[ParallelRow]) -> None:
    """Say how many of a user's rows have no source that their method could read, if any have none."""
    alone = sum(not any(row.sources) for row in rows) if config.needs_source else 0
    if alone:
        read = f"method={config.method} reads their targets alone, unfused"
        say(f"{alone} of {len(rows)} rows have no source text: {read}")


def asked_rows(
    config: Config,
    task: Task,
    target: Text | Iterable[Text | None] | None,
    source: Text | Iterable[Text | Sequence[Text | None] | None] | None,
) -> list[ParallelRow]:
    """The rows that Python code asks about, in its order.

    Args:
        config: of the run; its method says what is read of a row.
        task: its task.
        target: a text, or several (any iterable); may be left out where the method reads the source only.
        source: the same in the source language; None for a row that is read alone. Where the method reads several
            sources, a list of them for each row, in the order of the config.

    Raises:
        ConfigError: a text is missing or empty, or does not say the task's fields; or the lists do not match.
    """
    if target is None and (source is None or config.recipe.reads != "source"):
        raise ConfigError(f"method={config.method} was given no text to read", fix="give target=...")
    first = source if target is None else target
    if isinstance(first, str | Mapping):
        return [_asked(config, task, "0", target, source)]
    if isinstance(source, str | Mapping):
        raise ConfigError("target is a list, but source a single text", fix="give a list of as many sources")
    targets, sources = _several("target", target), _several("source", source)
    targets = [None] * len(sources) if target is None else targets
    sources = [None] * len(targets) if source is None else sources
    if len(targets) != len(sources):
        problem = f"{len(targets)} texts in target, but {len(sources)} in source"
        raise ConfigError(problem, fix="give one for each, and None for a row that is read alone")
    pairs = zip(targets, sources, strict=True)
    return [_asked(config, task, str(number), *pair) for number, pair in enumerate(pairs)]


def _several(name: str, texts: Any) -> list[Any]:
    if texts is None:
        return []
    if not isinstance(texts, Iterable):
        raise ConfigError(f"{name}={texts!r:.200} is neither a text nor a list of texts", fix="give one of these")
    if hasattr(texts, "columns"):  # going over a table gives their names, or their contents
        problem = f"{name} is a {type(texts).__name__}, a table and no list of texts"
        raise ConfigError(problem, fix="give one of its columns, e.g. table['text']")
    return list(texts)


def _asked(config: Config, task: Task, number: str, target: Any, source: Any) -> ParallelRow:
    languages = config.sources_read
    texts: Any = source if len(languages) > 1 and source is not None else [source] * len(languages)
    if not isinstance(texts, list | tuple) or len(texts) != len(languages):
        fix = f"give a list with a text for each of: {', '.join(languages)}"
        raise ConfigError(f"source[{number}]={source!r:.200} does not have one text per language", fix=fix)
    sides = tuple(_python_text(task, text, f"source[{number}]") for text in texts)
    side = _python_text(task, target, f"target[{number}]")
    if side is None and config.recipe.reads == "source":
        side = sides[0]
    if side is None:
        raise ConfigError(f"target[{number}] holds no text", fix="give one, or leave that row out")
    return _row(task, number, sides, side)


def _python_text(task: Task, value: Any, name: str) -> Side | None:
    fix = f"give {task.text_form()}" + ", or None for a row that is read alone" * name.startswith("source")
    return _text(task, value, lambda: ConfigError(f"{name}={value!r:.200} is no text of task {task.name}", fix=fix))


def row_of(config: Config, task: Task, record: Record, number: str) -> ParallelRow:
    """One line of a file; without an id it is called by its number."""
    sides = _sources(config, task, record)
    target = _text(task, record.values.get("target"), lambda: record.refuse("target", task.text_form()))
    if target is None:
        if config.recipe.reads != "source" or sides[0] is None:
            raise _without_text(record, ("target", "source") if config.recipe.reads == "source" else ("target",))
        target = sides[0]
    return _row(task, read_id(record, "id") if "id" in record.values else number, sides, target)


def _without_text(record: Record, columns: Sequence[str]) -> DataError:
    problem = f"{record.where} has no text in column {' or '.join(columns)}"
    if any(column in record.values for column in columns):
        return DataError(problem, fix="add it, or remove that row")
    return DataError(f"{problem} (it has: {', '.join(map(str, record.values))})", fix=record.named)


def _sources(config: Config, task: Task, record: Record) -> tuple[Side | None, ...]:
    """The row in each source language that is read; None where it has no text."""
    languages, given = config.sources_read, record.values.get("source")
    if not languages or given is None or given == "":
        return (None,) * len(languages)
    if isinstance(given, str) and len(languages) > 1:
        given = _parsed(given)
    texts = [given] if len(languages) == 1 and not isinstance(given, list) else given
    if not isinstance(texts, list) or len(texts) != len(languages):
        raise record.refuse("source", f"a list with a text for each of: {', '.join(languages)}")
    return tuple(_text(task, text, lambda: record.refuse("source", task.text_form())) for text in texts)


def _option(task: Task, text: str, option: str) -> Side:
    problem = f"{option}={text!r:.200} does not give {' and '.join(task.fields)} of task {task.name}"
    fix = f"pass {option} '{task.text_form()}'"
    side = _text(task, text, lambda: ConfigError(problem, fix=fix))
    if side is None:
        raise ConfigError(f"{option} is empty", fix=fix)
    return side


def _text(task: Task, value: Any, refusal: Callable[[], FlareError]) -> Side | None:
    """The task's fields: the text itself where there is one, otherwise a mapping; None: there is no text in it."""
    if value is None or (isinstance(value, str) and not value):
        return None
    if isinstance(value, str):
        value = {task.fields[0]: value} if len(task.fields) == 1 else _parsed(value)
    if not isinstance(value, Mapping) or set(value) != set(task.fields) or not all(map(is_text, value.values())):
        raise refusal()
    fields = {field: value[field] for field in task.fields}
    return Side(fields, (Answer(""),) if task.free_answers else ()) if any(map(str.strip, fields.values())) else None


class _Texts(yaml.BaseLoader):
    """Reads every scalar as a text, but a bare null as none."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        """A text; JSON writes a letter beyond the first 65,536 in two halves, which YAML takes for two letters."""
        text = super().construct_scalar(node)
        with suppress(UnicodeError):  # half of one is refused where texts are looked at
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        return text


_NULL = "tag:yaml.org,2002:null"
_Texts.add_implicit_resolver(_NULL, re.compile("null$"), ["n"])
_Texts.add_constructor(_NULL, lambda _loader, _node: None)


def _parsed(text: str) -> Any:
    """JSON or YAML in which all scalars but a bare null are texts; None: it is neither."""
    try:
        return yaml.load(text, _Texts)
    except (yaml.YAMLError, RecursionError):
        return None


def _row(task: Task, row_id: str, sources: tuple[Side | None, ...], target: Side) -> ParallelRow:
    label = None if task.free_answers else 0  # not known, and not read
    return ParallelRow(row_id, label, sources, target)
