"""NLLB's tags: each is one that its tokenizer has, and every language of every task has one."""

import pytest
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from flare_ds.exceptions import DataError
from flare_ds.tasks import NUSAX, TASKS, TYDIQA, XNLI, TableTask
from flare_ds.tasks.languages import SUBSTITUTES, codes_of, nllb_tag

OWN = TableTask(
    name="own",
    languages=("en", "xx"),
    nllb_tags={"xx": "szl_Latn", "ar": "ary_Arab"},
    pools=("all",),
    fields=("text",),
    labels=("a", "b"),
    template="{text}:",
)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_language_of_a_task_has_a_tag_that_nllb_has(name: str) -> None:
    task = TASKS.get(name)
    assert {nllb_tag(task, code) for code in task.languages} <= set(FAIRSEQ_LANGUAGE_CODES)


@pytest.mark.parametrize("code", ["hi", "pt", "gl", "ca", "sh", "es", "de", "pl", "ja", "ko", "te", "bn", "jv", "su"])
def test_usual_targets_have_a_tag_that_nllb_has(code: str) -> None:
    assert nllb_tag(XNLI, code) in FAIRSEQ_LANGUAGE_CODES


@pytest.mark.parametrize("code", M2M100["m2m100"])
def test_every_language_of_m2m100_has_a_tag_that_leads_back_to_it(code: str) -> None:
    tag = nllb_tag(XNLI, code)
    assert tag in FAIRSEQ_LANGUAGE_CODES or tag in ("bre_Latn", "fry_Latn")
    assert [name for name in codes_of(tag) if name in M2M100["m2m100"]] == [code]


@pytest.mark.parametrize(
    ("task", "tags"),
    [
        (XNLI, {"ar": "arb_Arab", "sw": "swh_Latn", "zh": "zho_Hans", "el": "ell_Grek", "ur": "urd_Arab"}),
        (NUSAX, {"ace": "ace_Latn", "bug": "bug_Latn", "jav": "jav_Latn", "min": "min_Latn", "ind": "ind_Latn"}),
        (TYDIQA, {"bn": "ben_Beng", "fi": "fin_Latn", "id": "ind_Latn", "ko": "kor_Hang", "te": "tel_Telu"}),
    ],
    ids=["xnli", "nusax", "tydiqa"],
)
def test_some_tags_as_they_are_known(task: TableTask, tags: dict[str, str]) -> None:
    assert {code: nllb_tag(task, code) for code in tags} == tags


def test_what_nllb_lacks_is_translated_as_indonesian() -> None:
    assert {code: nllb_tag(NUSAX, code) for code in SUBSTITUTES} == dict.fromkeys(("bbc", "mad", "nij"), "ind_Latn")
    assert not any(tag.startswith(tuple(SUBSTITUTES)) for tag in FAIRSEQ_LANGUAGE_CODES)


def test_the_tags_of_a_task_go_first_and_a_tag_is_its_own_code() -> None:
    assert (nllb_tag(OWN, "xx"), nllb_tag(OWN, "ar")) == ("szl_Latn", "ary_Arab")
    assert nllb_tag(XNLI, "quy_Latn") == "quy_Latn"


def test_an_unknown_code_names_the_nearest_and_how_to_give_a_tag() -> None:
    with pytest.raises(DataError, match=r"language 'pol'\n.*did you mean 'pl'[\s\S]*the tag itself[\s\S]*nllb_tags"):
        nllb_tag(XNLI, "pol")
