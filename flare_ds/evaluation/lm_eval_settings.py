"""What lm-eval's model_args and generation_kwargs say, as settings of a run."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from flare_ds.config import Config, GenerateConfig
from flare_ds.evaluation.answerable import with_whole_head
from flare_ds.evaluation.late import settled
from flare_ds.exceptions import ConfigError
from flare_ds.runs import RunDirectory
from flare_ds.runtime.states import for_free_text
from flare_ds.settings import load_config
from flare_ds.wrong_values import explain

_logger = logging.getLogger("lm_eval.flare_ds")  # below lm-eval's own, whose handler and level it shares

_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


def run_settings(run: str | None, batch_size: int | str, settings: Mapping[str, Any]) -> Config:
    """The run's settings, with the whole base on every rank unless they are told otherwise; see `FlareModel`.

    Raises:
        ConfigError: the run is not given, or a setting is not one; or the method cannot be asked by lm-eval.
        CheckpointError: the run's training has not ended; or see `settled`.
    """
    if run is None:
        raise ConfigError("model_args do not say which run", fix="add run=RUN, a run directory or a config")
    changed: dict[str, Any] = {"evaluate.whole_model": True}
    if not str(batch_size).startswith("auto"):
        changed["evaluate.batch_size"] = batch_size
    changed |= settings
    trusted = changed.pop("trust_task_code", False) in (True, "True", "true")
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in changed.items()}
    overrides = [f"{key}={value}" for key, value in values.items()]
    config = load_config(str(run), overrides, trust_task_code=trusted)
    if config.reads_mt_encoder:
        raise ConfigError(
            f"method={config.method} reads an MT encoder's states, which are not computed for lm-eval's documents",
            fix="score it with flare-ds evaluate",
        )
    if config.task.chat:
        raise ConfigError(
            "task.chat=true: the run answers chats, but lm-eval's contexts are plain texts",
            fix="score it with flare-ds evaluate",
        )
    if (directory := RunDirectory(config.run_dir)).under_way(config):
        directory.check_trained(config)
    return for_free_text(with_whole_head(settled(config)))


def row_length(given: int | None, longest: int) -> int:
    """Most tokens in a row: as many as the base has positions, or fewer.

    Raises:
        ConfigError: it is no such number.
    """
    if given is None:
        return longest
    if not isinstance(given, int) or not 2 <= given <= longest:
        problem = f"max_length={given!r} is not a whole number from 2 to {longest}"
        raise ConfigError(problem, fix="set max_length in --model_args to one, or leave it out")
    return given


def source_templates(config: Config, given: str | Sequence[str] | None) -> tuple[str, ...]:
    """What `doc_to_source` gives each source that the method reads; nothing where it runs unfused, which is said.

    Raises:
        ConfigError: there are not as many as sources.
    """
    wanted = len(config.sources_read)
    templates = (given,) if isinstance(given, str) else tuple(given or ())
    if not templates and wanted:
        warn(f"method={config.method} runs unfused: without doc_to_source in model_args it gets no source")
    elif templates and not wanted:
        warn(f"doc_to_source is not used: method={config.method} reads no source")
        return ()
    elif len(templates) != wanted:
        languages = ", ".join(config.sources_read)
        raise ConfigError(
            f"doc_to_source={list(templates)} is not one for each of: {languages}", fix=f"give a list of {wanted}"
        )
    return templates


def decoding_settings(settings: Mapping[str, Any], config: Config) -> GenerateConfig:
    """How requests want to be decoded, by their generation_kwargs as lm-eval normalises them; the seed is the run's.

    Raises:
        ConfigError: it wants something else than greedy decoding or sampling, or a setting is out of range.
    """
    for name in sorted(settings.keys() - _KNOWN):
        if (name, settings[name]) != ("num_beams", 1):  # which many tasks say
            problem = f"generation_kwargs {name}={settings[name]!r} is not known to flare_ds"
            raise ConfigError(problem, fix=f"use only: {', '.join(sorted(_KNOWN))}")
    sampling = {key: settings[key] for key in ("temperature", "top_k", "top_p") if key in settings}
    try:
        return GenerateConfig(
            max_new_tokens=settings["max_gen_toks"],
            seed=config.generate.seed,
            **({"temperature": 1.0} | sampling if settings["do_sample"] else {}),
        )
    except ValidationError as error:
        raise explain(error, GenerateConfig, "generation_kwargs") from None


def warn(message: str) -> None:
    """Say something in lm-eval's log, once for all ranks, which may not have met yet."""
    if os.environ.get("RANK", "0") == "0":
        _logger.warning(message)
