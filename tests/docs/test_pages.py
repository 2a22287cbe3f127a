"""Every block of the documentation is run, in its order, or validated; what does not run has its reason there."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flare_ds.cli import _parse
from flare_ds.config import TaskConfig
from flare_ds.settings import parse_config
from flare_ds.sweep.plan import load_sweep
from flare_ds.tasks.load import task_of
from tests.docs.blocks import PAGES, Block, blocks
from tests.docs.commands import typed
from tests.docs.world import RUN, make_world
from tests.toy import REPOSITORY

ELSEWHERE = {
    "README": "test_readme.py",
    "serving": "test_serving.py",
    "python": "test_python_page.py",
    "extending": "docs/test_extending_page.py",
}
"""Pages whose blocks a test of their own runs."""
TYPED = [page for page in PAGES if page.stem not in ELSEWHERE]
LANGUAGES = ("bash", "python", "yaml", "json", "csv", "text")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README was followed."""
    return make_world(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def clone(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for a page."""
    shutil.copytree(world, tmp_path / "clone", symlinks=True)
    monkeypatch.setenv("FLARE_DS_HOME", str(world.parent / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def runs(block: Block) -> bool:
    return block.skipped is None and block.file is None and block.language in ("bash", "python")


@pytest.mark.parametrize("page", [page for page in TYPED if any(map(runs, blocks(page)))], ids=lambda page: page.stem)
def test_what_a_page_prints_runs(clone: Path, page: Path) -> None:
    """Its files are written first, as it may show them after the command that reads them; what it makes is absent."""
    own = [block for block in blocks(page) if block.skipped is None]
    made = [place for block in own for place in re.findall(r"(?:--output|flare-ds new) (\S+)", block.text)]
    for place in (clone / name for name in made):
        place.unlink(missing_ok=True)
    if "run.yaml" in made:  # and so is the run of it
        shutil.rmtree(clone / "runs")
    for block in own:
        if block.file and not (clone / block.file).exists():
            (clone / block.file).parent.mkdir(parents=True, exist_ok=True)
            (clone / block.file).write_text(block.text, encoding="utf-8")
    names = {"__name__": "__main__"}  # a page's Python goes on from block to block
    for block in filter(runs, own):
        try:
            if block.language == "python":
                exec(compile(block.text, block.place, "exec"), names)
            else:
                for command in block.commands:
                    typed(command)
                    if command.startswith("flare-ds evaluate runs/"):
                        metrics = json.loads((clone / command.split()[2] / "metrics.json").read_text())
                        assert metrics["num_examples"] > 0 and 0 <= metrics["score"] <= 1, command
        except BaseException as error:
            raise AssertionError(f"{block.place}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_marked_and_data_is_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        assert block.language in LANGUAGES or (page.name == "README.md" and not block.language), block.place
        if block.file and (REPOSITORY / block.file).exists():
            assert block.text == (REPOSITORY / block.file).read_text(encoding="utf-8"), block.place
        if block.skipped is None and block.language in ("yaml", "json"):
            validate(block)


def validate(block: Block) -> None:
    """A sweep, a task of ours or of lm-eval's, or a run, or sections of a run."""
    if block.language == "json":
        assert all(json.loads(line) for line in block.text.splitlines())
        return
    content = yaml.safe_load(block.text) or {}  # comments alone
    file = Path("block.yaml")
    file.write_text(block.text, encoding="utf-8")
    if "grid" in content:
        assert load_sweep(file).runs
    elif {"fields", "labels", "answers_column"} & set(content):
        assert task_of(TaskConfig(name=content["name"], path=str(file), target_language="en")).fields
    elif "dataset_path" in content:
        pytest.importorskip("lm_eval.api.task").TaskConfig(**content)
    else:
        parts = {key: RUN.get(key, {}) | part if isinstance(part, dict) else part for key, part in content.items()}
        parse_config(content if "method" in content else RUN | parts, origin=block.place)


def ours(command: str) -> list[str]:
    """What our command line is asked, straight or through a launcher; nothing if it is not."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "flare-ds":
        return arguments
    if program == "sweep_languages.sh":
        return ["sweep", *arguments]
    if program == "sbatch" and "--wrap" in arguments:
        return ours(arguments[arguments.index("--wrap") + 1])
    if program == "sbatch":
        return arguments[arguments.index("launchers/slurm.sbatch") + 1 :]
    if program == "hostfile.sh":
        return arguments[arguments.index("--") + 1 if "--" in arguments else 1 :]
    return []


NOT_RUN = [block for page in PAGES for block in blocks(page) if block.skipped and block.language == "bash"]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_what_cannot_run_is_what_our_programs_take(block: Block) -> None:
    """The shell reads it; our parser takes its words; a sweep resolves, every run of it; scripts are there."""
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for command in block.commands:
        for script in scripts(command):
            assert (REPOSITORY / script).exists(), command
        if arguments := ours(command):
            _parse(arguments)
        if arguments[:1] == ["sweep"]:
            overrides = [word for word in arguments[2:] if "=" in word]
            assert load_sweep(REPOSITORY / arguments[1], overrides).runs


def scripts(command: str) -> list[str]:
    """Files of ours that a command names."""
    return re.findall(r"(?:launchers|benchmarks|tests)/[\w./-]+", command)


def test_what_our_programs_do_not_take_is_seen() -> None:
    named = {script for block in NOT_RUN for command in block.commands for script in scripts(command)}
    assert {"launchers/slurm.sbatch", "launchers/hostfile.sh"} <= named
    for command in ("flare-ds trian run.yaml", "./launchers/hostfile.sh hosts --no_ssh -- train run.yaml --rnaks 2"):
        with pytest.raises(SystemExit):
            _parse(ours(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_is_in_a_block_that_runs(page: Path) -> None:
    """Not indented, where nothing would notice that it is wrong."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(
        r"^    (flare-ds [a-z]|deepspeed |python |pip |sbatch |srun |\./launchers)", text, re.MULTILINE
    )


def test_the_engine_sees_a_wrong_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`a/b.yaml`:\n\n```yaml\nx: 1\n```\n\n<!-- not run: why -->\n```bash\nls \\\n  -l # x\n# y\n```\n")
    first, second = blocks(page)
    assert (first.file, first.text, first.language, first.skipped) == ("a/b.yaml", "x: 1\n", "yaml", None)
    assert (second.skipped, second.commands, second.line) == ("why", ["ls    -l # x"], 8)
