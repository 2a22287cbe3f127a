"""The verb `cache`: list, describe, check, compare and remove token caches."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare_ds.cli.arguments import add_list, add_trust, add_verb, at_least, is_cache_path, typed_path
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError, FlareError
from flare_ds.failures import say
from flare_ds.settings import load_config

if TYPE_CHECKING:
    from flare_ds.cli.arguments import Verbs
    from flare_ds.kept import Kept, Kind

_DEFAULT_DIRECTORY = Config.model_fields["cache_dir"].default
DIFFERENT = 1
"""Exit code of `cache diff`, as of diff(1)."""


def add_verbs(verbs: "Verbs") -> None:
    """Declare them."""
    summary = "list, describe, check, compare and remove caches: tokens, states, translations, what was fetched"
    examples = ["flare-ds cache ls", "flare-ds cache verify tokenized_cache", "flare-ds cache rm --older-than 30"]
    cache = add_verb(verbs, "cache", None, summary, examples)
    own = cache.add_subparsers(required=True, metavar="ls|stats|verify|diff|rm")
    ls = add_verb(own, "ls", _ls, "list the caches of a directory", ["flare-ds cache ls /shared/caches"])
    where = "directory of caches (default: %(default)s)"
    ls.add_argument("directory", nargs="?", type=typed_path, default=_DEFAULT_DIRECTORY, metavar="DIR", help=where)
    one = "tokenized_cache/multiemo-en-pl-3f2a9c0d1b4e5f60"
    stats = add_verb(own, "stats", _stats, "rows, lengths and size of a cache", [f"flare-ds cache stats {one}"])
    stats.add_argument("cache", type=typed_path, metavar="CACHE", help="cache directory")
    summary = "read every byte of caches, and say what is damaged; exit code 1 if anything is"
    verify = add_verb(own, "verify", _verify, summary, ["flare-ds cache verify tokenized_cache"])
    several = "cache directories, or directories of caches"
    add_list(verify, "caches", "+", type=typed_path, metavar="CACHE", help=several)
    summary = "show how two caches, or those of two configs, differ; exit code 1 if they do"
    diff = add_verb(own, "diff", _diff, summary, [f"flare-ds cache diff {one} run.yaml"])
    for name in ("a", "b"):
        diff.add_argument(name, type=typed_path, metavar=name.upper(), help="cache directory, run directory or config")
    add_trust(diff)
    _add_rm(own)


def _add_rm(verbs: "Verbs") -> None:
    examples = ["flare-ds cache rm --unfinished", "flare-ds cache rm --older-than 30 --in /shared/caches --yes"]
    summary = "remove caches; their files are deleted a day later, since runs may still read them"
    rm = add_verb(verbs, "rm", _rm, summary, examples)
    add_list(rm, "caches", "*", type=typed_path, metavar="CACHE", help="cache directories")
    which = rm.add_mutually_exclusive_group()
    which.add_argument("--unfinished", action="store_true", help="what killed builds left behind, if it is an hour old")
    old = "caches not written or used for DAYS days; fetched models and data are kept"
    which.add_argument("--older-than", type=at_least(0), metavar="DAYS", help=old)
    rm.add_argument(
        "--in",
        dest="directory",
        type=typed_path,
        default=_DEFAULT_DIRECTORY,
        metavar="DIR",
        help="directory to look for them in (default: %(default)s)",
    )
    rm.add_argument("--yes", action="store_true", help="do not ask")


def _ls(options: argparse.Namespace) -> None:
    from flare_ds.kept import kept_in

    found = map(_cells, kept_in(options.directory, _kinds()))
    rows = [("kind", "task", "languages", "rows", "size", "age", "state", "directory"), *found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(kept: "Kept") -> tuple[str, ...]:
    from flare_ds.human import human_age, human_size

    told = (cell or "–" for cell in (kept.kind.name if kept.kind else "", *kept.about))
    return *told, human_size(kept.bytes), human_age(kept.seconds_old), kept.state, str(kept.path)


def _kinds() -> "list[Kind]":
    """All that these verbs look after."""
    from flare_ds.data.cache.verification import TOKENS
    from flare_ds.data.states import STATES
    from flare_ds.fetch.record import FETCHED
    from flare_ds.translation.store import TRANSLATION

    return [TOKENS, STATES, TRANSLATION, FETCHED]


def _stats(options: argparse.Namespace) -> None:
    from flare_ds.cli.statistics import damage_told, describe
    from flare_ds.data.cache import open_cache

    cache = open_cache(options.cache)
    with damage_told(cache.path):
        print("\n".join(describe(cache)))


def _verify(options: argparse.Namespace) -> int:
    from flare_ds.data.cache import verify
    from flare_ds.kept import caches_among

    damaged = 0
    for path, kind in caches_among(options.caches, _kinds()):
        try:
            (kind.verify if kind else verify)(path)
            print(f"{path}: whole")
        except FlareError as error:
            damaged += 1
            say(str(error))
    return min(damaged, 1)


def _diff(options: argparse.Namespace) -> int:
    lines = list(compare(*(_fields(path, options.trust_task_code) for path in (options.a, options.b))))
    print("\n".join(lines) or "equal")
    return DIFFERENT if lines else 0


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Say each field that differs between two manifests, or what configs want, with its value on both sides."""
    from flare_ds.data.cache.key import differing

    for name in differing(a, b):
        yield name
        for side, fields in (("a", a), ("b", b)):
            yield f"  {side}  {repr(fields[name]) if name in fields else '(absent)'}"


def _fields(path: Path, trusted: bool) -> dict[str, Any]:
    """What the tokens of a cache depend on: of one that is there, or of the one that a config wants."""
    from flare_ds.data.cache.key import key_fields
    from flare_ds.data.cache.manifest import read_manifest
    from flare_ds.data.parallel import load_parallel
    from flare_ds.models.loading import load_tokenizer
    from flare_ds.tasks.load import task_of

    if is_cache_path(path):
        return read_manifest(path).fields
    config = load_config(path, trust_task_code=trusted)
    task = task_of(config.task)
    data = load_parallel(task, config.task, config.translate)
    return key_fields(config, task, data, load_tokenizer(config.model))


def _rm(options: argparse.Namespace) -> None:
    from flare_ds.human import human_size

    caches = _chosen(options)
    for cache in caches:
        print(f"{cache.path}  {cache.state}, {human_size(cache.bytes)}", file=sys.stderr)
    if not caches:
        print("nothing to remove", file=sys.stderr)
    elif options.yes or _agreed(len(caches)):
        for cache in caches:
            cache.remove()


def _chosen(options: argparse.Namespace) -> "list[Kept]":
    from flare_ds.fetch.record import FETCHED
    from flare_ds.kept import kept_at, kept_in

    by_rule = options.unfinished or options.older_than is not None
    if by_rule == bool(options.caches):
        problem = "cache rm takes either cache directories or one of --unfinished and --older-than"
        raise ConfigError(problem, fix="see `flare-ds cache rm --help`")
    if options.caches:
        return [kept_at(path, _kinds()) for path in options.caches]
    found = kept_in(options.directory, _kinds())
    if options.unfinished:
        return [kept for kept in found if kept.is_abandoned]
    seconds = options.older_than * 86_400  # nobody notes that he reads what was fetched
    return [kept for kept in found if kept.seconds_old > seconds and kept.kind is not FETCHED]


def _agreed(number: int) -> bool:
    """Ask, if there is someone to ask.

    Raises:
        ConfigError: there is not.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"cannot ask whether to remove {number} caches: no terminal", fix="add --yes")
    return input(f"remove {number} caches? [y/N] ").strip().lower() in ("y", "yes")
