"""Tasks of a user's own: found by path, refused with the key or line at fault, alive in worker processes."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flare_ds.config import TaskConfig
from flare_ds.exceptions import ConfigError, DataError
from flare_ds.tasks import TYDIQA, XNLI, MultiEmo, Row, Task
from flare_ds.tasks.load import check_languages, task_of
from flare_ds.tasks.nusax import NUSAX
from flare_ds.tasks.of_run import keep_task_file, use_named_task, use_task_of_run

DECLARED = {
    "name": "mine",
    "languages": ["en", "pl"],
    "pools": ["all"],
    "fields": ["text"],
    "labels": ["no", "yes"],
    "template": "{text}\nAnswer:",
}
ONE_TABLE = {"config": "all", "parallel": False, "id_column": "id"}
MODULE = """
from dataclasses import dataclass
from flare_ds.tasks import Row, Task

@dataclass
class Part:
    text: str

class Mine(Task):
    name = "mine"
    version = 3
    languages = ("en", "pl")
    labels = ("no", "yes")
    suffix = "!"

    def read(self, data_dir, language, pool):
        for i in range(3):
            yield Row(f"{language}-{i}", {"text": Part(f"{data_dir} {i}{self.suffix}").text}, i % 2)

    def prompt(self, fields):
        return fields["text"] + ":"
"""


def config(path: Path | None = None, **settings: object) -> TaskConfig:
    own = {"name": "mine", "target_language": "pl"} if path else {"name": "xnli", "target_language": "de"}
    return TaskConfig.model_validate({**own, "path": path and str(path), **settings})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def declared(tmp_path: Path, **changes: object) -> Path:
    return write(tmp_path / "mine.yaml", yaml.safe_dump({**DECLARED, **changes}))


def rows_in_a_worker(task: Task) -> tuple[str, list[Row]]:
    return type(task).__name__, list(task.read("far", "en", "all"))


def test_without_a_path_the_built_in_task_is_found() -> None:
    assert task_of(config()) is XNLI
    with pytest.raises(ConfigError, match="did you mean 'xnli'"):
        task_of(config(name="xnly"))


def test_a_declaration_says_what_a_task_needs(tmp_path: Path) -> None:
    task = task_of(config(declared(tmp_path)))
    assert (task.name, task.version, task.metric, task.long_field) == ("mine", 1, "accuracy", "text")
    assert task.prompt({"text": "{x}"}) == "{x}\nAnswer:"
    qa = {"labels": [], "fields": ["passage", "question"], "template": "{passage} {question}"}
    free = task_of(config(declared(tmp_path, **qa)))
    assert (free.free_answers, free.metric, free.long_field) == (True, "exact_match", "passage")
    assert free.split_fields == ("passage",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lables": ["a"]}, r"unknown key 'lables'.*\n.*did you mean 'labels'"),
        ({"labels": [True, False]}, r"labels\.0=True in .* is not a text"),
        ({"label_values": {1.5: "yes"}}, r"label_values\.1\.5=1\.5 in .* is neither .* nor a text"),
        ({"label_values": {True: "yes", "true": "no"}}, "key 'label_values.true' occurs twice"),
        ({"label_values": {1: "yes", "1": "no"}}, "key 'label_values.1' occurs twice"),
        ({"label_values": {"Y": "yess"}}, r"label_values has the words \['yess'\]"),
        ({"languages": []}, r"languages=\[\] in .* is empty"),
        ({"pools": ["test"]}, r"pools=\['test'\]"),
        ({"pools": ["dev"]}, r"pools\.0='dev' in .* is neither all, train, validation nor test"),
        ({"version": 0}, "version=0 in .* is not a number of at least 1"),
        ({"template": "{txt}:"}, r"'txt' is not among fields=\['text'\]"),
        ({"template": "{text.__class__}:"}, "'text.__class__' is not among fields"),
        (
            {"template": "{text:>2000000000}:"},
            "formats a field",
        ),
        ({"template": "{text!r}:"}, "formats a field"),
        ({"template": "{text"}, r"template='\{text': expected '\}' .*\n.*double each brace"),
        ({"template": "{}:"}, "'' is not among fields"),
        ({"labels": ["no", "no"]}, r"labels=\['no', 'no'\] repeats one"),
        ({"labels": ["\u00e9", "e\u0301"]}, r"labels=\[.*\] repeats one"),
        ({"template": "{text}: "}, "template ends in white space"),
        ({"columns": {"txt": "a"}}, "'txt' is not among fields"),
        ({"long_field": "txt"}, "'txt' is not among fields"),
        ({"split_fields": ["txt"]}, "'txt' is not among fields"),
        ({"metric": "exact_match"}, r"metric='exact_match' with labels=\['no', 'yes'\]"),
        ({"metric": "bleu"}, "metric='bleu' in .* is neither accuracy, macro_f1 nor exact_match"),
        ({"labels": [], "metric": "accuracy"}, r"metric='accuracy' with labels=\[\]"),
        ({"config": "all"}, "config='all' is one table for 2 languages"),
        ({"config": None}, "config=None is one table"),
        ({"id_prefixes": {"en": "e", "pl": "p"}, "parallel": False}, "id_prefixes needs id_column"),
        ({"id_prefixes": {"en": "e", "pl": "p"}, "id_column": "id"}, "rows that are not parallel"),
        ({**ONE_TABLE, "id_prefixes": {"en": "p", "pl": "pl"}}, r"'p'.*: that of 'en' begins that of 'pl'"),
        ({**ONE_TABLE, "id_prefixes": {"en": "en-", "pl": ""}}, "that of 'pl' begins that of 'en'"),
        ({**ONE_TABLE, "id_prefixes": {"en": "en-", "pl": "en-"}}, "that of 'en' begins that of 'pl'"),
        ({**ONE_TABLE, "config": {"en": "a", "pl": "a"}, "id_prefixes": {"en": "a", "pl": "ab"}}, "begins that"),
        ({"splits": {"validation": "dev"}}, r"splits names 'validation', not among pools=\['all'\]"),
        ({"original_language": "pll"}, r"original_language='pll'[\s\S]*did you mean 'pl'"),
    ],
)
def test_a_declaration_at_odds_with_itself_names_the_key(tmp_path: Path, changes: dict, said: str) -> None:
    path = declared(tmp_path, **changes)
    with pytest.raises(ConfigError, match=said) as caught:
        task_of(config(path))
    assert str(path) in caught.value.problem


@pytest.mark.parametrize("name", ["org/mine", "../mine", ".mine", "", "my mine", "a:b", "mine\n"])
@pytest.mark.parametrize("suffix", [".yaml", ".py"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    """Its caches would lie where no run looks for them."""
    module = write(tmp_path / "mine.py", MODULE.replace('"mine"', repr(name)))
    path = module if suffix == ".py" else declared(tmp_path, name=name)
    with pytest.raises(ConfigError, match=r"task\.name=.* cannot begin the name of a directory\n  fix: use letters"):
        task_of(config(path, name=name))


@pytest.mark.parametrize("name", ["mine", "my-mine_2.1", "żółty", "_mine"])
def test_a_name_of_letters_and_digits_is_taken(tmp_path: Path, name: str) -> None:
    assert task_of(config(declared(tmp_path, name=name), name=name)).name == name


def test_a_run_that_began_under_another_kind_of_name_is_still_read(tmp_path: Path) -> None:
    path, run = declared(tmp_path, name="org/mine"), tmp_path / "run"
    run.mkdir()
    keep_task_file(str(path), run)
    use_task_of_run(str(path), run, trusted=False)
    assert task_of(config(path, name="org/mine")).name == "org/mine"
    use_named_task(str(path))
    with pytest.raises(ConfigError, match="org/mine"):
        task_of(config(path, name="org/mine"))


@pytest.mark.parametrize("template", ["Answer:", "{{text}}\nAnswer:", {"en": "{text}:", "pl": "{{text}}:"}])
def test_a_prompt_that_says_nothing_of_its_row_is_refused(tmp_path: Path, template: str | dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"for every row of language '(en|pl)'\n.*\{text\} in a template"):
        task_of(config(declared(tmp_path, template=template)))


def test_prefixes_of_tables_of_their_own_may_be_alike(tmp_path: Path) -> None:
    own = {**ONE_TABLE, "config": "{language}", "id_prefixes": {"en": "row-", "pl": "row-"}}
    assert task_of(config(declared(tmp_path, **own))).name == "mine"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", yaml.safe_dump({"name": "mine"}))
    with pytest.raises(
        ConfigError, match=r"key 'languages' is missing in .*mine\.yaml: .*codes of the languages"
    ) as told:
        task_of(config(path))
    assert all(f"key '{key}' is missing" in told.value.problem for key in ("fields", "template")), "each of them"


def test_every_unknown_key_and_every_repeated_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "nam: x\nlangs: []\n")
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*'nam'.*did you mean 'name'.*'langs'.*'languages'"):
        task_of(config(path))
    path = write(tmp_path / "mine.yaml", "labels: [a, b]\nname: mine\nlabels: [b, a]\n")
    with pytest.raises(ConfigError, match="key 'labels' occurs twice, in lines 1 and 3"):
        task_of(config(path))


def test_yaml_cannot_run_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        task_of(config(path))


@pytest.mark.parametrize("suffix", [".yaml", ".py"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.path=.*nowhere\{suffix}' is not there"):
        task_of(config(tmp_path / f"nowhere{suffix}"))


def test_a_path_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.json' is neither \.yaml nor \.py"):
        task_of(config(tmp_path / "mine.json"))


def test_the_name_in_the_file_must_be_the_one_in_the_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.name='yours', but .* defines task 'mine'"):
        task_of(config(declared(tmp_path), name="yours"))
    path = write(tmp_path / "mine.py", MODULE)
    with pytest.raises(ConfigError, match=r"defines 0 tasks named 'yours' .*it has: mine"):
        task_of(config(path, name="yours"))


@pytest.mark.parametrize(
    "source",
    [
        MODULE,
        MODULE + "TASK = Mine()\n",
        f"from flare_ds.tasks import TableTask\nTASK = TableTask(**{DECLARED!r})\n",
    ],
)
def test_a_python_file_gives_a_class_or_an_instance(tmp_path: Path, source: str) -> None:
    task = task_of(config(write(tmp_path / "mine.py", source)))
    assert isinstance(task, Task) and task.name == "mine"


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", MODULE + "A = Mine()\nB = Mine()\n")
    with pytest.raises(ConfigError, match=r"mine\.py defines 2 tasks named 'mine'"):
        task_of(config(path))


@pytest.mark.parametrize(("source", "said"), [("1 +", "SyntaxError.*line 1"), ("import nowhere", "No module named")])
def test_a_python_file_that_fails_is_named(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"importing task\.path='.*mine\.py' failed: .*{said}"):
        task_of(config(write(tmp_path / "mine.py", source)))


def test_a_changed_python_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", MODULE)
    before = task_of(config(path))
    after = task_of(config(write(path, MODULE.replace('suffix = "!"', 'suffix = "?"'))))
    assert [next(iter(task.read("d", "en", "all"))).fields["text"] for task in (before, after)] == ["d 0!", "d 0?"]


def test_tasks_of_ones_own_reach_spawned_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far/en").mkdir(parents=True)
    write(tmp_path / "far/en/all.jsonl", '{"text": "x", "label": "yes"}\n')
    write(tmp_path / "far/mine.py", MODULE)
    monkeypatch.chdir(tmp_path / "far")
    tasks = [task_of(config(Path("mine.py"))), task_of(config(declared(tmp_path)))]
    monkeypatch.chdir(tmp_path)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        found = list(workers.map(rows_in_a_worker, tasks))
    assert found[0] == ("Mine", [Row(f"en-{i}", {"text": f"far {i}!"}, i % 2) for i in range(3)])
    assert found[1] == ("TableTask", [Row("all-0", {"text": "x"}, 1)])


def test_the_built_in_tasks_can_be_sent_to_workers() -> None:
    assert pickle.loads(pickle.dumps(TYDIQA)) == TYDIQA


def test_own_sides_must_be_languages_of_the_task_and_parallel() -> None:
    check_languages(XNLI, config(extra_source_languages=["fr"]))
    check_languages(TYDIQA, config(source_language="ko", target_language="ko"))
    for settings in ({"target_language": "dee"}, {"extra_source_languages": ["dee"]}, {"source_language": "dee"}):
        with pytest.raises(DataError, match=r"task xnli has no language 'dee'\n.*'de'.*task\.sides=translated"):
            check_languages(XNLI, config(**settings))
    with pytest.raises(DataError, match=r"tydiqa are not the same in en, ko[\s\S]*task\.sides=translated"):
        check_languages(TYDIQA, config(target_language="ko"))


def test_translated_sides_need_the_source_and_a_tag_of_the_target() -> None:
    for target in ("ko", "pt", "quy_Latn", "en"):
        check_languages(TYDIQA, config(sides="translated", target_language=target))
    for task, tag, own in ((TYDIQA, "arb_Arab", "ar"), (TYDIQA, "swh_Latn", "sw"), (XNLI, "fra_Latn", "fr")):
        with pytest.raises(DataError, match=rf"is what task {task.name} calls '{own}'[\s\S]*target_language={own},"):
            check_languages(task, config(sides="translated", target_language=tag))
    brazil = replace(XNLI, languages=("en", "pt-BR", "no"), nllb_tags={"pt-BR": "por_Latn"})
    for task, code, own in (
        (NUSAX, "id", "ind"),
        (NUSAX, "jv", "jav"),
        (NUSAX, "su", "sun"),
        (brazil, "pt", "pt-BR"),
        (brazil, "nb", "no"),
    ):
        with pytest.raises(DataError, match=rf"='{code}' is what task {task.name} calls '{own}'[\s\S]*={own},"):
            check_languages(task, config(sides="translated", target_language=code))
    for task, code in ((NUSAX, "bbc"), (NUSAX, "pl"), (brazil, "pt-BR"), (brazil, "no"), (brazil, "nn")):
        check_languages(task, config(sides="translated", target_language=code))
    with pytest.raises(DataError, match=r"source_language=ind and .*target_language=bbc are both ind_Latn"):
        check_languages(NUSAX, config(sides="translated", source_language="ind", target_language="bbc"))
    with pytest.raises(DataError, match="task multiemo has no language 'hi'"):
        check_languages(MultiEmo(), config(sides="translated", source_language="hi"))
    with pytest.raises(DataError, match="no NLLB tag is known for language 'xq'"):
        check_languages(XNLI, config(sides="translated", target_language="xq"))
    with pytest.raises(DataError, match=r"task\.extra_source_languages=\['fr'\] with task\.sides=translated"):
        check_languages(XNLI, config(sides="translated", extra_source_languages=["fr"]))
