"""The help: verbs in groups, each argument explained; versions; completion; and none of it waits for torch."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from docs.make_cli import with_reference
from flare_ds.cli import main, make_parser
from flare_ds.cli.parser import GROUPS, verbs_of
from tests.toy import REPOSITORY


def parsers() -> Iterator[argparse.ArgumentParser]:
    """That of the command, and those of all verbs."""
    todo = [make_parser()]
    while todo:
        yield (parser := todo.pop())
        todo += verbs_of(parser).values()


def test_every_argument_is_explained() -> None:
    arguments = [
        (parser.prog, action)
        for parser in parsers()
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction)
    ]
    assert len(arguments) > 60
    assert [(prog, action.dest) for prog, action in arguments if not (action.help or "").strip()] == []


def test_every_verb_is_in_one_group_of_the_help() -> None:
    verbs = verbs_of(make_parser())
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(set(grouped)) == len(grouped) and set(verbs) <= set(grouped)
    lines = make_parser().format_help().splitlines()
    for group, names in GROUPS.items():
        assert f"  {group}:" in lines
        for name in set(names) & set(verbs):
            (place,) = (place for place, line in enumerate(lines) if line.startswith(f"    {name} "))
            heading = next(line for line in reversed(lines[:place]) if line.startswith("  ") and line[2] != " ")
            assert heading == f"  {group}:"


def test_help_and_version_wait_for_no_library() -> None:
    """A process of its own: this one has imported everything."""
    code = (
        "import sys; from flare_ds.cli import main\n"
        "for words in (['--version'], ['--help'], ['train', '--help'], ['completion', 'bash']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'deepspeed', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    for package in ("torch", "deepspeed", "transformers", "peft"):
        assert f"{package} {version(package)}\n" in done.stdout
    assert done.stdout.startswith("flare_ds ")


COMPLETE = """
source "$1"
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
$(complete -p flare-ds | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sw"], {"sweep"}),
        (["ca"], {"cache"}),
        (["cache", "ve"], {"verify"}),
        (["train", "--ran"], {"--ranks"}),
        (["inspect", "run.yaml", "--split", "te"], {"test"}),
        (["new", "run.ya"], {"run.yaml"}),
    ],
    ids=" ".join,
)
def test_bash_completes(
    words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "flare-ds"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "run.yaml").touch()
    command = ["bash", "-c", COMPLETE, "bash", str(script), "flare-ds", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "stage1" in capsys.readouterr().out


def test_the_page_is_what_the_parsers_say() -> None:
    page = (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8")
    assert page == with_reference(page), "python docs/make_cli.py docs/cli.md"
    assert all(len(line) <= 120 for line in page.splitlines())
