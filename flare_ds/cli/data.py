"""Verbs about data: prepare, inspect, translate, fetch.

Each imports what it needs when its config is read, so that a mistake in one is told at once.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flare_ds.cli.arguments import add_config, add_verb, at_least, config_of, is_cache_path, typed_path
from flare_ds.cli.importing import libraries
from flare_ds.exceptions import ConfigError
from flare_ds.tasks.base import SPLITS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from flare_ds.cli.arguments import Verbs
    from flare_ds.config import Config
    from flare_ds.data.cache import Cache


def add_verbs(verbs: "Verbs") -> None:
    """Declare them."""
    summary = "build (or find) the token cache of a config, and print where it is"
    examples = ["flare-ds prepare run.yaml", "flare-ds prepare run.yaml task.target_language=es --workers 8"]
    prepare = add_verb(verbs, "prepare", _prepare, summary, examples)
    add_config(prepare)
    _add_workers(prepare, "that tokenize; the files do not depend on it")
    _add_inspect(verbs)
    summary = "machine-translate the other side of the data of a config, and print where it is"
    examples = ["flare-ds translate run.yaml --workers 2"]
    translate = add_verb(verbs, "translate", _translate, summary, examples)
    add_config(translate)
    _add_workers(translate, "that translate, each on a GPU of its own where there are any")
    summary = "fetch a model or a data set, and print where it is"
    examples = ["flare-ds fetch data multiemo", "flare-ds fetch model gemma3-270m --link models/gemma3-270m"]
    fetch = add_verb(verbs, "fetch", _fetch, summary, examples)
    fetch.add_argument("kind", metavar="model|data", help="which of the two")
    fetch.add_argument("name", metavar="NAME", help="as `flare-ds models` and `flare-ds tasks` list them")
    link_help = "link PLACE, the path your config has, to it, and print PLACE"
    fetch.add_argument("--link", type=typed_path, metavar="PLACE", help=link_help)


def _add_inspect(verbs: "Verbs") -> None:
    summary = "show decoded rows of a cache side by side, and statistics of lengths, cuts and dropped rows"
    examples = [
        "flare-ds inspect run.yaml --split test --rows 3",
        "flare-ds inspect run.yaml --id products-4711",
        "flare-ds inspect tokenized_cache/multiemo-en-pl-3f2a9c0d1b4e5f60 --tokenizer models/gemma",
    ]
    inspect = add_verb(verbs, "inspect", _inspect, summary, examples)
    add_config(inspect, "config_or_cache")
    inspect.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    inspect.add_argument("--rows", type=at_least(0), default=5, metavar="N", help="how many are shown (default: 5)")
    which = inspect.add_mutually_exclusive_group()
    which.add_argument("--first", type=at_least(0), default=0, metavar="N", help="number of the first row shown")
    which.add_argument("--id", help="show the row with this id; all its windows, if it is read through several")
    inspect.add_argument(
        "--tokenizer",
        type=typed_path,
        metavar="DIR",
        help="base model whose tokenizer decodes a cache given without a config (default: show token ids)",
    )


def _add_workers(parser: argparse.ArgumentParser, help: str) -> None:
    help = f"processes {help} (default: auto, by the amount of work and the cores or GPUs here)"
    parser.add_argument("--workers", type=_workers, metavar="N|auto", help=help)


def _workers(text: str) -> int | None:
    return None if text == "auto" else at_least(1, most=1024)(text)


def _prepare(options: argparse.Namespace) -> None:
    config = config_of(options)

    with libraries(config.model):
        from flare_ds.cli.statistics import damage_told, one_sided, summary, too_long_to_say
        from flare_ds.data.cache import open_cache, prepare_cache
        from flare_ds.data.cache.format import MANIFEST
        from flare_ds.models.loading import load_tokenizer
        from flare_ds.training.readable import check_readable

    there = {manifest: manifest.stat().st_mtime_ns for manifest in Path(config.cache_dir).glob(f"*/{MANIFEST}")}
    path = prepare_cache(config, load_tokenizer(config.model), workers=options.workers)
    if shape := _shape_there(config):
        check_readable(config, open_cache(path), shape)
    found = there.get(path / MANIFEST) == (path / MANIFEST).stat().st_mtime_ns
    cache = open_cache(path)
    with damage_told(path):
        doubtful = [*one_sided(cache), *too_long_to_say(cache, config.generate.max_new_tokens)]
    print("\n".join(["found, whole" if found else "built", *summary(cache), *doubtful]), file=sys.stderr)
    print(path)


def _shape_there(config: "Config") -> "PreTrainedModel | None":
    """The base without its weights; None where there is but a tokenizer, which is all that a cache needs."""
    from flare_ds.models.loading import load_shape

    try:
        return load_shape(config.model)
    except ConfigError:
        return None


def _inspect(options: argparse.Namespace) -> None:
    cache, tokenizers = _named_cache(options) if is_cache_path(options.config) else _cache_of_config(options)

    from rich.console import Console

    from flare_ds.cli.inspect import MARK, RowPrinter, rows_of
    from flare_ds.cli.statistics import damage_told, describe_counts, describe_split

    split = cache.split(options.split)
    console = Console(highlight=False, markup=False)
    with damage_told(cache.path):
        rows = rows_of(split, first=options.first, number=options.rows, row_id=options.id)
        if rows:
            console.print(f"{MARK} where the prompt ends and the answer begins\n")
        printer = RowPrinter(console, cache, split, tokenizers)
        for row in rows:
            printer.print(row)
        print("\n".join([*describe_split(cache, options.split), *describe_counts(cache.manifest)]))


def _named_cache(options: argparse.Namespace) -> "tuple[Cache, dict[str, PreTrainedTokenizerBase]]":
    """A cache directory; and, if `--tokenizer` is given, the tokenizer of each stream but the MT encoder's."""
    if options.overrides or options.task_path:
        raise ConfigError(f"{options.config} is a cache: it has no settings to override", fix="name the config instead")

    from flare_ds.cli.inspect import check_tokenizer
    from flare_ds.config import ModelConfig
    from flare_ds.data.cache import open_cache
    from flare_ds.data.streams import is_base
    from flare_ds.models.loading import load_tokenizer

    cache = open_cache(Path(options.config))
    if options.tokenizer is None:
        return cache, {}
    try:
        tokenizer = load_tokenizer(ModelConfig(base=str(options.tokenizer)))
    except ConfigError as error:
        raise ConfigError(f"--tokenizer {options.tokenizer}: {error.problem}", fix=error.fix) from error
    check_tokenizer(cache, tokenizer, str(options.tokenizer))
    return cache, {stream: tokenizer for stream in cache.streams if is_base(stream)}


def _cache_of_config(options: argparse.Namespace) -> "tuple[Cache, dict[str, PreTrainedTokenizerBase]]":
    """The cache of a config, built if it is not there; and the tokenizer of each stream."""
    config = config_of(options)
    if options.tokenizer is not None:
        problem = f"--tokenizer {options.tokenizer} with a config, whose model.base={config.model.base!r} has its own"
        raise ConfigError(problem, fix="leave --tokenizer out, or name a cache directory")

    from flare_ds.data.cache import open_cache, prepare_cache
    from flare_ds.data.streams import MT
    from flare_ds.models.loading import load_tokenizer
    from flare_ds.tokenizing.mt_tokens import load_mt_tokenizer

    tokenizer = load_tokenizer(config.model)
    cache = open_cache(prepare_cache(config, tokenizer))
    tokenizers = dict.fromkeys(cache.streams, tokenizer)
    return cache, tokenizers | ({MT: load_mt_tokenizer(config.source)} if config.caches_mt else {})


def _translate(options: argparse.Namespace) -> None:
    config = config_of(options)

    from flare_ds.data.parallel import translation_jobs
    from flare_ds.tasks.load import task_of
    from flare_ds.translation.run import describe, translate_jobs

    jobs = translation_jobs(task_of(config.task), config.task)
    directories = translate_jobs(jobs, config.translate, workers=options.workers)
    print("\n".join(describe(config.task, directories)), file=sys.stderr)
    print("\n".join(map(str, directories)))


def _fetch(options: argparse.Namespace) -> None:
    from flare_ds.fetch.fetch import main_fetch

    print(main_fetch(options.kind, options.name, link=options.link))
