"""What NLLB calls the languages of tasks, and what stands in for those it does not know."""

import re
from collections.abc import Mapping

from flare_ds.exceptions import DataError
from flare_ds.registry import suggestion
from flare_ds.tasks.base import Task

_TWO_LETTERS = """
    af afr_Latn  am amh_Ethi  ar arb_Arab  as asm_Beng  az azj_Latn  ba bak_Cyrl  be bel_Cyrl  bg bul_Cyrl  bn ben_Beng
    br bre_Latn  bs bos_Latn  ca cat_Latn  cs ces_Latn  cy cym_Latn  da dan_Latn  de deu_Latn  el ell_Grek  en eng_Latn
    eo epo_Latn  es spa_Latn  et est_Latn  eu eus_Latn  fa pes_Arab  ff fuv_Latn  fi fin_Latn  fr fra_Latn  fy fry_Latn
    ga gle_Latn  gd gla_Latn  gl glg_Latn  gu guj_Gujr  ha hau_Latn  he heb_Hebr  hi hin_Deva  hr hrv_Latn  ht hat_Latn
    hu hun_Latn  hy hye_Armn  id ind_Latn  ig ibo_Latn  is isl_Latn  it ita_Latn  ja jpn_Jpan  jv jav_Latn  ka kat_Geor
    kk kaz_Cyrl  km khm_Khmr  kn kan_Knda  ko kor_Hang  ky kir_Cyrl  lb ltz_Latn  lg lug_Latn  ln lin_Latn  lo lao_Laoo
    lt lit_Latn  lv lvs_Latn  mg plt_Latn  mk mkd_Cyrl  ml mal_Mlym  mn khk_Cyrl  mr mar_Deva  ms zsm_Latn  mt mlt_Latn
    my mya_Mymr  nb nob_Latn  ne npi_Deva  nl nld_Latn  nn nno_Latn  no nob_Latn  ns nso_Latn  oc oci_Latn  or ory_Orya
    pa pan_Guru  pl pol_Latn  ps pbt_Arab  pt por_Latn  ro ron_Latn  ru rus_Cyrl  rw kin_Latn  sd snd_Arab  sh hrv_Latn
    si sin_Sinh  sk slk_Latn  sl slv_Latn  sn sna_Latn  so som_Latn  sq als_Latn  sr srp_Cyrl  ss ssw_Latn  su sun_Latn
    sv swe_Latn  sw swh_Latn  ta tam_Taml  te tel_Telu  th tha_Thai  tl tgl_Latn  tn tsn_Latn  tr tur_Latn  uk ukr_Cyrl
    ur urd_Arab  uz uzn_Latn  vi vie_Latn  wo wol_Latn  xh xho_Latn  yi ydd_Hebr  yo yor_Latn  zh zho_Hans  zu zul_Latn
"""
_THREE_LETTERS = """
    ace ace_Latn  ast ast_Latn  ban ban_Latn  bjn bjn_Latn  bug bug_Latn  ceb ceb_Latn  eng eng_Latn  ilo ilo_Latn
    ind ind_Latn  jav jav_Latn  min min_Latn  sun sun_Latn
"""
"""All languages of M2M100 are in these two tables. Breton and Western Frisian, which NLLB lacks, have such tags."""


def _pairs(table: str) -> dict[str, str]:
    words = table.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_TAGS: Mapping[str, str] = _pairs(_TWO_LETTERS) | _pairs(_THREE_LETTERS)
NLLB_TAG = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")

SUBSTITUTES: Mapping[str, str] = {"bbc": "ind_Latn", "mad": "ind_Latn", "nij": "ind_Latn"}
"""Toba Batak, Madurese and Ngaju are in no NLLB model. As in the paper they are translated as Indonesian, the language
their NusaX sentences were translated from; scores with translated sides in these languages are to be read with that
in mind."""


def nllb_tag(task: Task, code: str) -> str:
    """What NLLB calls a language: the task's own tag, the usual one, a substitute, or the code if it is a tag itself.

    Raises:
        DataError: nothing is known for that code.
    """
    tags = {**_TAGS, **SUBSTITUTES, **task.nllb_tags}
    if code in tags:
        return tags[code]
    if NLLB_TAG.fullmatch(code):
        return code
    own = f"or use the tag itself, like pol_Latn, or give {code!r} one in nllb_tags of a task of your own"
    near = suggestion(code, tags).partition(" (known")[0]
    raise DataError(f"no NLLB tag is known for language {code!r}", fix=f"{near}; {own}")


def own_code(task: Task, code: str) -> str | None:
    """What a task calls a language that it has rows in, where that is another code, or its NLLB tag; None otherwise.

    What is only translated as another language is not that language.
    """
    if code in task.languages:
        return None
    known = {**_TAGS, **task.nllb_tags}
    return next((own for own in task.languages if known.get(own, own) == known.get(code, code)), None)


def codes_of(tag: str) -> list[str]:
    """The usual codes of an NLLB tag: `nob_Latn` is `nb` and `no`; none where it has none."""
    return [code for code, known in _TAGS.items() if known == tag]
