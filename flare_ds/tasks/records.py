"""Records of a table, one by one: on the hub, or in local files with the hub's columns.

    <data_dir>/<config>/<split>.parquet | .jsonl | .json | .csv        one file, or the hub's own shards:
    <data_dir>/<config>/<split>-00000-of-00002.parquet                 as the hub names them (maybe with a checksum),
    <data_dir>/<config>/<split>/0000.parquet                           as its conversion of loading scripts names them

Local files are read in place: a changed file is never read stale, and a large one never held whole (but for `.json`,
one array). They are not opened through `datasets`, which quietly turns a number among texts into a text, and NaN
among integers into null, when it stands far enough from the start of a file. Columns that a task does not read may
hold anything.
"""

import csv
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, TextIO

from flare_ds.exceptions import DataError
from flare_ds.tasks.check import is_unicode

PARQUET_CONVERSION = "refs/convert/parquet"
"""The hub's own conversion of a data set that is a loading script: folders stand where the script had configs."""
_BATCH = 1000
_LONGEST_CELL = 2**31 - 1
"""The module csv knows one limit for all files, which by itself is 131,072 characters."""
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?(\.\w+)")
"""The package datasets has written a checksum behind the numbers, of each shard its own."""
_HUB_DIGITS = 5
_USE_FILES = "or set task.data_dir to a directory that holds the same tables (docs/tasks.md says how they lie)"


@dataclass(frozen=True)
class Record:
    """One line of a table.

    Attributes:
        where: the row's number and the file, for messages.
        values: by column.
        named: what the columns are to be called, for messages.
        again: what else than mending it may help, for messages.
    """

    where: str
    values: Mapping[str, Any]
    named: ClassVar[str] = (
        "name the columns as on the hub, or set their names in the task: columns for fields, and id_column, "
        "label_column and answers_column for the others"
    )
    again: ClassVar[str] = ""

    def __getitem__(self, column: str) -> Any:
        """The value of a column.

        Raises:
            DataError: the record lacks it.
        """
        if column not in self.values:
            columns = ", ".join(map(str, self.values))
            raise DataError(f"{self.where} has no column {column!r} (it has: {columns})", fix=self.named)
        return self.values[column]

    def text(self, column: str) -> str:
        """The value of a column that holds texts; may be empty.

        Raises:
            DataError: the record lacks it, or it is null, a number, or not Unicode.
        """
        value = self[column]
        if not isinstance(value, str):
            raise self.refuse(column, "a text")
        if not is_unicode(value):
            raise self.refuse(column, "valid Unicode (UTF-8)")
        return value

    def refuse(self, column: str, expected: str) -> DataError:
        """The error that says that a value is not what it should be."""
        value = repr(self.values[column])
        problem = f"{self.where} has {column}={value:.100}, not {expected}"
        return DataError(problem, fix=f"correct or remove that row{self.again}")


class GivenRecord(Record):
    """One line of a file that the user gave beside the task's own tables: nobody fetched it."""

    named = "rename the column to that"


@dataclass(frozen=True)
class Records:
    """All records of a table, in its order; to be iterated once.

    Attributes:
        origin: the file, or the place on the hub.
        classes: the names behind the integers of each column that is a ClassLabel.
    """

    origin: str
    classes: Mapping[str, Sequence[str]]
    records: Iterable[Record]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


def open_hub(name: str, config: str | None, split: str, revision: str | None, columns: Collection[str]) -> Records:
    """Load one split of a data set on the hub, of which some columns are read; it is kept in the hub's local cache.

    Raises:
        DataError: it is not there, or the hub cannot be reached.
    """
    import datasets  # slow to import, and local files do not need it

    place = {"data_dir": config} if revision == PARQUET_CONVERSION else {"name": config}
    origin = f"{name} ({config or 'default'}, {split})"
    try:
        table = datasets.load_dataset(name, split=split, revision=revision, **place)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        fix = f"check the connection to the hub, {_USE_FILES}"
        raise DataError(f"cannot load {origin} from the hub: {error}", fix=fix) from error
    labels = ((name, kind) for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel))
    classes = {column: kind.names for column, kind in labels}
    return Records(origin, classes, _hub_records(table, origin, columns))


def _hub_records(table: Any, origin: str, columns: Collection[str]) -> Iterator[Record]:
    unread = dict.fromkeys(table.column_names)  # for a message that lists them
    read = table.select_columns([column for column in table.column_names if column in columns])
    rows = (row for batch in read.iter(_BATCH) for row in zip(*batch.values(), strict=True))
    for number, row in enumerate(rows):
        yield Record(f"row {number} of {origin}", unread | dict(zip(read.column_names, row, strict=True)))


def open_files(data_dir: str, folders: Sequence[str], split: str, columns: Collection[str]) -> Records:
    """Open the local file, or the shards, of one split.

    Args:
        data_dir: where to look.
        folders: folders below it that may hold the split; empty: the directory itself.
        split: its name on the hub.
        columns: that are read.

    Raises:
        DataError: there is no such file, or there are several forms of it.
    """
    files = _find(Path(data_dir), folders, split)
    origin = str(files[0] if len(files) == 1 else files[0].parent)
    return _records(origin, files, columns, Record)


def open_file(path: Path, columns: Collection[str]) -> Records:
    """Open one local file, whatever its form, of which some columns are read.

    Raises:
        DataError: there is no such file, or it has another form; or, while iterating, it breaks off at a row.
    """
    if path.suffix not in _READERS or not path.is_file():
        problem = f"{path} is no file that ends in {' or '.join(_READERS)}"
        raise DataError(problem, fix="check the path, or write the rows in one of these forms")
    return _records(str(path), [path], columns, GivenRecord)


def _records(origin: str, files: Sequence[Path], columns: Collection[str], kind: type[Record]) -> Records:
    classes = _parquet_classes(files[0]) if files[0].suffix == ".parquet" else {}
    return Records(origin, classes, (record for file in files for record in _read(file, columns, kind)))


def split_files(directory: Path, split: str) -> Iterator[Path]:
    """The files of a directory that `open_files` may read as a split."""
    return chain.from_iterable(map(directory.glob, _patterns(split)))


def _patterns(split: str) -> list[str]:
    return [f"{split}{shard}{suffix}" for shard in ("", "-*", "/*") for suffix in _READERS]


def _find(data_dir: Path, folders: Sequence[str], split: str) -> list[Path]:
    directories = [data_dir / folder for folder in folders]
    globs = [directory.glob(pattern) for directory in directories for pattern in _patterns(split)]
    forms = [sorted(files, key=_counted) for files in globs]
    found = [files for files in forms if files]
    if not found:
        suffixes = ",".join(suffix.removeprefix(".") for suffix in _READERS)
        looked = " or ".join(str(directory / f"{split}.{{{suffixes}}}") for directory in directories)
        fix = "put the table there, check task.data_dir, or leave task.data_dir out to read the hub (docs/tasks.md)"
        if others := sorted(chain.from_iterable(directory.glob(f"{split}.*") for directory in directories)):
            looked = f"{looked}, but {others[0]}"
            fix = f"write it as {split}.csv, with commas between cells, or in another of these forms"
        raise DataError(f"found no {looked}", fix=fix)
    if len(found) > 1:
        raise DataError(f"both {found[0][0]} and {found[1][0]} hold the split {split!r}", fix="keep one of them")
    _check_shards(found[0], split, directories)
    return found[0]


def _counted(file: Path) -> tuple[list[str | int], str]:
    """By which files are sorted: as texts, but what is a number counts as one, so part 2 goes before part 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)], file.name


def _check_shards(files: Sequence[Path], split: str, directories: Collection[Path]) -> None:
    """Refuse what only begins like the split, some of the hub's shards, as if they were all, and two sets of them.

    A folder that is called as the split holds nothing else, whatever its files are called.
    """
    shards = {file: _SHARD.fullmatch(file.name) for file in files}
    others = [file for file, shard in shards.items() if shard is None and file.parent in directories]
    if others and len(files) > 1:
        names = " and ".join(file.name for file in files[:3])
        problem = f"{files[0].parent} holds {names}, which are no shards of {split!r}"
        fix = f"keep one of them; parts of one table go into a folder {split}, or are called {split}-00000-of-00002 ..."
        raise DataError(problem, fix=fix)
    found: dict[tuple[str, str, str], list[str]] = {}
    """The numbers of each set, all of which have to be there."""
    for shard in filter(None, shards.values()):
        name, number, total, suffix = shard.groups()
        found.setdefault((name, total, suffix), []).append(number)
    if len(found) > 1:
        sets = " and ".join(f"{name}-*-of-{total}{suffix}" for name, total, suffix in sorted(found))
        raise DataError(f"{files[0].parent} holds {sets}", fix="keep the shards of one of them")
    for (name, total, suffix), numbers in found.items():
        if twice := [number for number, often in Counter(numbers).items() if often > 1]:
            problem = f"{files[0].parent} holds {name}-{twice[0]}-of-{total}{suffix} twice, with other checksums"
            raise DataError(problem, fix="keep the shards of one download")
        have, digits = {*map(int, numbers)}, min(map(len, numbers))
        wanted = _wanted(have, total)
        if missing := int(total) - sum(number in wanted for number in have):
            lacking = islice((number for number in wanted if number not in have), 3)
            told = ", ".join(f"{name}-{number:0{digits}d}-of-{total}{suffix}" for number in lacking)
            problem = f"{files[0].parent} lacks {missing} of {int(total)} shards: {told}{', ...' * (missing > 3)}"
            raise DataError(problem, fix="put them there, or fetch the data again")


def _wanted(have: Collection[int], total: str) -> range:
    """The numbers of all shards of a set: the hub counts from 0, in five digits; others do, or begin with 1."""
    number = int(total)
    from_zero = 0 in have or (len(total) == _HUB_DIGITS and number not in have)
    return range(number) if from_zero else range(1, number + 1)


def _read(path: Path, columns: Collection[str], kind: type[Record]) -> Iterator[Record]:
    """Number the rows of a file; say where it broke, if it does."""
    from pyarrow import ArrowException

    rows = _READERS[path.suffix](path, columns)
    number = 0
    while True:
        where = f"row {number} of {path}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except (OSError, ValueError, csv.Error, ArrowException, RecursionError) as error:
            raise DataError(f"{where} cannot be read: {error}", fix="correct the file") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object with columns: {row!r:.100}", fix="write one object a row")
        yield kind(where, row)
        number += 1


def _read_parquet(path: Path, columns: Collection[str]) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, memory_map=True) as file:
        unread = dict.fromkeys(file.schema_arrow.names)  # for a message that lists them
        for batch in file.iter_batches(_BATCH, columns=[name for name in unread if name in columns]):
            yield from (unread | row for row in batch.to_pylist())


def _parquet_classes(path: Path) -> dict[str, Sequence[str]]:
    """The hub writes what its columns are into the file; `Features` would refuse a file for columns nobody reads."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    try:
        written = (read_schema(path).metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(written).get("info", {}).get("features") or {}
        named = {column: one for column, one in features.items() if isinstance(one, dict)}  # not a list of anything
        classes = {column: one for column, one in named.items() if "ClassLabel" in str(one.get("_type"))}
        return {column: [str(name) for name in one["names"]] for column, one in classes.items()}
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} is not a parquet file: {error}", fix="write it again") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problem = f"{path} does not say what its classes are: {error!r:.100}"
        raise DataError(problem, fix="write it again with the package datasets, or without its metadata") from error


def _whole(digits: str) -> int | float:
    """An integer; Python refuses the largest ones, which may stand in a column that nobody reads."""
    return int(digits) if len(digits) < 1000 else float(digits)


def _refuse_twice(names: Collection[str]) -> None:
    """Refuse a name that stands twice: which of the two is meant nobody knows."""
    if twice := [name for name, often in Counter(names).items() if often > 1]:
        raise ValueError(f"it has {twice[0]!r} twice")


def _parser(columns: Collection[str]) -> Callable[[str], Any]:
    """Reads JSON of which these keys are read."""

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            _refuse_twice([name for name, _ in pairs if name in columns])
        return found

    return json.JSONDecoder(parse_int=_whole, object_pairs_hook=as_object).decode


_BAD_BYTES = "surrogateescape"
"""Bytes that are not UTF-8 become what `Record.text` refuses, in the columns that are read."""


def _open_text(path: Path, newline: str | None = None) -> TextIO:
    """A file of text, in UTF-8.

    Raises:
        DataError: it says of itself that it is UTF-16.
    """
    with path.open("rb") as file:
        if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise DataError(f"{path} is UTF-16", fix="save it as UTF-8 (in Excel: CSV UTF-8, not Unicode Text)")
    return path.open(encoding="utf-8-sig", errors=_BAD_BYTES, newline=newline)


def _read_jsonl(path: Path, columns: Collection[str]) -> Iterator[Any]:
    parse = _parser(columns)
    with _open_text(path) as file:
        yield from (parse(line) for line in file if not line.isspace())


def _read_json(path: Path, columns: Collection[str]) -> Iterator[Any]:
    with _open_text(path) as file:
        text = file.read()
    try:
        rows = _parser(columns)(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        problem = f"{path} has more data after its first JSON value: {error}"
        raise DataError(problem, fix=f"if every line is a row, call it {path.stem}.jsonl") from error
    if not isinstance(rows, list):
        raise ValueError(f"it holds {type(rows).__name__}, not an array of rows")
    yield from rows


def _refuse_rows(place: int, cells: Sequence[str]) -> None:
    """Refuse a cell of several lines that holds rows of the table, as where one opening quote is too many.

    Honest texts have lines and commas, too. So every line has to have as many cells as it then would: the first those
    from this one on, the last those up to it, all others a row's; and one of those says in another column what this row
    says there, as rows with one label do.
    """
    first, *lines, last = cells[place].replace("\r\n", "\n").split("\n")
    rows = [line.split(",") for line in lines]
    if any(len(row) != len(cells) for row in rows):
        return
    alike = any(row[at] == cell for row in rows for at, cell in enumerate(cells) if at != place)
    if alike and first.count(",") == len(cells) - 1 - place and last.count(",") == place:
        told = f"a quote that opens in it closes only rows later, so that {lines[0]!r:.80} is read as part of a cell"
        raise ValueError(f"{told}; if that is meant, write the table as .jsonl")


def _read_csv(path: Path, columns: Collection[str]) -> Iterator[Any]:
    """Cells are texts of any length: `NA` and `null` too, and an empty cell is an empty text.

    An empty line is such a cell where there is one column, and otherwise no row.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with _open_text(path, newline="") as file:
        rows = csv.reader(file, strict=True)
        names = next(rows, [])
        _refuse_other_cells(path, names, columns)
        _refuse_twice([name for name in names if name in columns])
        for row in rows:
            cells = row or [""] * (len(names) == 1)
            if cells and len(cells) != len(names):
                raise ValueError("its number of cells differs from the header line's")
            for place, cell in enumerate(cells):
                if "\n" in cell:
                    _refuse_rows(place, cells)
            if cells:
                yield dict(zip(names, cells, strict=True))


def _refuse_other_cells(path: Path, names: Sequence[str], columns: Collection[str]) -> None:
    """Refuse a file that calls itself a CSV and has something else between its cells, or says what it has."""
    line = ",".join(names)
    if set(names).isdisjoint(columns) and (line.startswith("sep=") or re.search("[;\t|]", line)):
        fix = "write commas between its cells, and the columns' names in its first line"
        raise DataError(f"{path} begins with {line!r:.100}, which names no column that is read", fix=fix)


_READERS: Mapping[str, Callable[[Path, Collection[str]], Iterator[Any]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
