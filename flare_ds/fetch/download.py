"""Bring pinned files from the package index: through pip, one at a time, each checked against its sha256."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flare_ds.checksums import file_sha256
from flare_ds.exceptions import FetchError
from flare_ds.fetch.child import last_line, run_child
from flare_ds.locks import one_at_a_time


@dataclass(frozen=True)
class Package:
    """One file of the package index.

    Attributes:
        requirement: name and exact version, e.g. `name==1.0.0`.
        file: the name it is published under.
        sha256: of the whole file, in hexadecimal.
        disk_bytes: free disk that bringing it needs, where pip needs far more than the file.
        shared: whether several sources are made from it, so that it is kept for the next.
    """

    requirement: str
    file: str
    sha256: str
    disk_bytes: int = 0
    shared: bool = False


def download(packages: Sequence[Package], directory: Path) -> list[Path]:
    """Bring every file into `directory`; one that is there already (an earlier call, or by hand) is only checked.

    Returns:
        the files, in the order of `packages`.

    Raises:
        FetchError: pip failed, or a file's sha256 is not the pinned one.
        HostError: the disk is full.
    """
    for package in packages:
        waiting = partial(print, f"{package.file}: another process is downloading it; waiting", file=sys.stderr)
        path = directory / package.file
        with one_at_a_time(path, waiting):
            if not path.exists():
                _pip_download(package, path)
            _verify(package, path)
    return [directory / package.file for package in packages]


def _pip_download(package: Package, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pins = partial / "pins.txt"
    pins.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    # pip runs the setup.py of a source distribution for its metadata: with --require-hashes it checks the file first.
    arguments = ["--no-deps", "--require-hashes", "--requirement", str(pins), "--dest", str(partial)]
    code, words = run_child([sys.executable, "-m", "pip", "download", *arguments], {"TMPDIR": str(partial)})
    if code != 0:
        raise _explain(package, path, words)
    os.replace(partial / package.file, path)
    shutil.rmtree(partial)


def _verify(package: Package, path: Path) -> None:
    if (found := file_sha256(path)) != package.sha256:
        problem = f"{path} is not the file it should be: sha256 {package.sha256} expected, {found} found"
        raise FetchError(problem, fix=f"delete {path} and run the same command again")


def _explain(package: Package, path: Path, words: str) -> FetchError:
    by_hand = f"place {path.name} (sha256 {package.sha256}) in {path.parent} by hand and run the same command again"
    if found := re.search(r"Got\s+([0-9a-f]{64})", words):
        problem = (
            f"the package index gave another file for {package.file}: "
            f"sha256 {package.sha256} expected, {found[1]} found"
        )
        return FetchError(problem, fix=f"run `pip cache purge` and retry, or {by_hand}")
    problem = f"pip could not download {package.requirement}: {last_line(words)}"
    return FetchError(problem, fix=f"check the network and pip's index settings and retry, or {by_hand}")
