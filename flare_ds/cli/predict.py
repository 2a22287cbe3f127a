"""The verb predict: for a pair of texts a few lines to read, for a file of rows a file of predictions.

With --interactive questions are answered one after another by a model that stays loaded. One is a line for each text
that the method reads: the target's, then each source's. An empty source line lets the target be read alone; with
--translate there is none. A terminal is asked by name; from a pipe the same lines are read without.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from flare_ds.cli.arguments import add_config, add_verb, config_of, typed_path
from flare_ds.cli.importing import libraries
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, FlareError
from flare_ds.failures import say
from flare_ds.files import write_text
from flare_ds.json_text import json_text

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs
    from flare_ds.data.parallel import ParallelRow
    from flare_ds.evaluation.answers import Written
    from flare_ds.evaluation.predict import Labelled, Predictor
    from flare_ds.evaluation.translated_rows import RowTranslator
    from flare_ds.tasks.base import Task

    Said = Labelled | Written
    Ask = Callable[[Sequence[ParallelRow]], Sequence[Said]]
Record = dict[str, str | float]
_FORMS = (".jsonl", ".parquet")


def add_predict(verbs: "Verbs") -> None:
    """Declare it."""
    summary = "predict the label word, or with --generate an answer, of one text, a pair, or each row of a file"
    examples = [
        'flare-ds predict runs/pl-flare --source "I waited for weeks" --target "Czekałem tygodniami"',
        "flare-ds predict runs/hi-lora --generate --target '{question: ..., context: ...}'",
        'flare-ds predict runs/pl-flare --translate --target "Czekałem tygodniami"',
        "flare-ds predict runs/pl-flare --ranks 2 --file pairs.jsonl --output said.parquet",
        "flare-ds predict runs/pl-flare --interactive",
    ]
    predict = add_verb(verbs, "predict", _predict, summary, examples, on_every_rank=True)
    add_config(predict, "run_or_config")
    given = predict.add_mutually_exclusive_group()
    given.add_argument(
        "--target",
        metavar="TEXT",
        help="text in the target language; for a task of several fields a YAML or JSON mapping of them",
    )
    given.add_argument(
        "--file",
        type=typed_path,
        metavar="FILE",
        help="rows with the columns target, source and id (.jsonl, .json, .csv, .parquet): texts as for --target, "
        "several sources as a list; a row without a source is read alone",
    )
    given.add_argument(
        "--interactive",
        action="store_true",
        help="load the model once, then read one text a line until the input ends: the target's, then each source's "
        "(empty line: none)",
    )
    source_help = "the same in a source language, for methods that read it; repeat for several languages"
    predict.add_argument("--source", action="append", default=[], metavar="TEXT", help=source_help)
    translate_help = "machine-translate texts given without a source, by the `translate` settings"
    predict.add_argument("--translate", action="store_true", help=translate_help)
    output_help = "where predictions go, as .jsonl or .parquet (default: they are printed)"
    predict.add_argument("--output", type=typed_path, metavar="FILE", help=output_help)
    predict.add_argument("--generate", action="store_true", help="generate an answer, by the `generate` settings")


def _predict(options: argparse.Namespace) -> None:
    config = config_of(options)

    from flare_ds.tasks.load import task_of

    task = task_of(config.task)
    rows = _given(options, config, task)

    with libraries(config.model):
        from flare_ds.evaluation.evaluate import saved_adapter
        from flare_ds.evaluation.predict import Predictor
        from flare_ds.evaluation.translated_rows import RowTranslator
        from flare_ds.runtime.engine import let_go
        from flare_ds.runtime.joining import join_if_launched
        from flare_ds.runtime.rank_zero import agreed, on_rank_zero

    join_if_launched()
    writes = options.generate or task.free_answers or config.evaluate.answers == "generated"
    predictor = Predictor(config, task, writes=writes)
    ask: Ask = predictor.write if writes else predictor.rank
    translator = None
    if options.translate:
        agreed(saved_adapter, config)  # a run that cannot answer needs no translation
        translator = agreed(RowTranslator, config, task)
    if options.interactive:
        _converse(config, task, predictor, ask, translator)
    else:
        if translator:
            rows, translator = on_rank_zero(_translated, translator, rows), None
            let_go()  # so that the base has its room
        _tell(options, config, rows, ask(rows))


def _translated(translator: "RowTranslator", rows: "Sequence[ParallelRow]") -> "list[ParallelRow]":
    """The rows with the sources that they lacked; those of a single one are told."""
    filled = translator.fill(rows)
    if len(filled) == 1:
        for before, side in zip(rows[0].sources, filled[0].sources, strict=True):
            if before is None:
                say(f"translated: {' | '.join(side.fields.values())}" if side else "the text has no translation")
    return filled


def _converse(
    config: Config, task: "Task", predictor: "Predictor", ask: "Ask", translator: "RowTranslator | None"
) -> None:
    """Answer until the lines end; a question that cannot be read or answered is told, and the next one is read."""
    from flare_ds.evaluation.given_rows import asked_rows
    from flare_ds.runtime.process_group import world_size

    if world_size() > 1:
        raise ConfigError(f"--interactive needs one process, not {world_size()} ranks", fix="start one, or use --file")
    _ = predictor.running  # loaded before the first question
    reads_target = translator is not None or config.recipe.reads != "source"
    languages = () if translator else config.sources_read
    for texts in _questions(["target"] * reads_target + [f"source ({code})" for code in languages], sys.stdin):
        target, sources = (texts[0], texts[1:]) if reads_target else (None, texts)
        try:
            rows = asked_rows(config, task, target, sources if len(sources) > 1 else (sources or [None])[0])
            print(_readable(ask(_translated(translator, rows) if translator else rows)[0]), flush=True)
        except FlareError as error:
            say(str(error))


def _questions(names: Sequence[str], lines: TextIO) -> Iterator[list[str | None]]:
    """The texts of each question; one that the end of the lines cut short is none."""
    while True:
        texts: list[str | None] = []
        for name in names:
            if lines.isatty():
                print(f"{name}> ", end="", file=sys.stderr, flush=True)
            if not (line := lines.readline()):
                return
            texts.append(line.strip() or None)
        yield texts


def _tell(options: argparse.Namespace, config: Config, rows: "Sequence[ParallelRow]", said: "Sequence[Said]") -> None:
    from flare_ds.evaluation.given_rows import tell_unfused
    from flare_ds.runtime.process_group import rank
    from flare_ds.runtime.rank_zero import on_rank_zero

    if rank() == 0 and options.file:
        tell_unfused(config, rows)
    records = [{"id": row.id, **of_row.record} for row, of_row in zip(rows, said, strict=True)]
    if options.output:
        on_rank_zero(lambda: _write(options.output, records))
    elif rank() == 0:
        print("".join(map(_line, records)) if options.file else _readable(said[0]), end="")


def _given(options: argparse.Namespace, config: Config, task: "Task") -> "list[ParallelRow]":
    """The rows that are asked about; what cannot be read or written is refused before the model is loaded."""
    from flare_ds.evaluation.given_rows import given_pair, read_rows

    if options.output and options.output.suffix not in _FORMS:
        fix = f"choose a name that ends in {' or '.join(_FORMS)}"
        raise ConfigError(f"--output={str(options.output)!r} has an unknown file extension", fix=fix)
    if options.translate and options.source:
        raise ConfigError("--translate cannot be combined with --source", fix="leave one of them out")
    if options.interactive:
        if options.source or options.output:
            raise ConfigError("--interactive takes no --source and no --output", fix="leave them out")
        return []
    if options.file is None:
        return [given_pair(config, task, target=options.target, sources=options.source, translate=options.translate)]
    if options.source:
        raise ConfigError("--source cannot be combined with --file", fix="put it in the file's column `source`")
    if options.output and _is_same(options.file, options.output):
        problem = f"--output={str(options.output)!r} is the file that --file={str(options.file)!r} reads"
        raise ConfigError(problem, fix="give --output another name: its texts would be lost")
    return read_rows(config, task, options.file)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, through links, too."""
    return one.exists() and other.exists() and one.samefile(other)


def _readable(said: "Said") -> str:
    """The answer, or the label words, the likeliest first."""
    from flare_ds.evaluation.answers import Written

    if isinstance(said, Written):
        return f"{said.text}\n"
    best_first = sorted(said.probabilities.items(), key=lambda item: -item[1])
    return "".join(f"{probability:.4f}  {word}\n" for word, probability in best_first)


def _line(record: Record) -> str:
    return json_text(record) + "\n"


def _write(path: Path, records: Sequence[Record]) -> None:
    from flare_ds.scoring.predictions import write_predictions

    if path.suffix == ".parquet":
        write_predictions(path, records)
    else:
        write_text(path, "".join(map(_line, records)))
