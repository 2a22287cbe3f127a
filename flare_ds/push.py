"""A folder that can be put on the Hugging Face hub as it is: a trained run without what belongs to this machine.

    README.md                       the model card, with front matter as the hub reads it
    adapter/                        adapter_config.json, adapter_model.safetensors: PEFT's layout
    config.yaml                     the run's settings; the base by its name on the hub, no place of this machine
    cache.json  versions.json       what the run answers (prompt, label words), and what it was trained with
    base.json                       the commit of its base, where that was the hub's
    training.json  task.yaml        how it was trained; the task's own file, where it has one

It is a run directory, so flare_ds loads it as one. Nothing is uploaded here.
"""

import json
import re
import shlex
from pathlib import Path

from safetensors.torch import save_file

from flare_ds.adapters.card import CARD, card_text
from flare_ds.adapters.files import KEPT, SECTION, SETTINGS, WEIGHTS, read_weights
from flare_ds.config import Config, TaskConfig, TranslateConfig
from flare_ds.evaluation.late import settled
from flare_ds.exceptions import ConfigError
from flare_ds.files import check_new, new_directory, open_tensors, write_json, write_text
from flare_ds.json_text import json_text, parse_object
from flare_ds.model_files.fingerprint import is_commit
from flare_ds.model_files.names import is_path
from flare_ds.runs import RunDirectory, RunResult
from flare_ds.runs.changes import changes
from flare_ds.runs.directory import BASE, CACHE, CONFIG, METRICS, TRAINING, VERSIONS
from flare_ds.settings import parse_config
from flare_ds.shipped import AUTO, is_name
from flare_ds.tasks.load import task_of
from flare_ds.tasks.of_run import keep_task_file

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_ENCODER = "source.mt_encoder"


def push(config: Config, output: Path, *, base: str | None = None, licence: str | None = None) -> Path:
    """Write the folder of a trained run, and return it.

    Args:
        config: of the run.
        output: the new folder.
        base: the base's name on the hub; None: as `model.base` says, where that is one.
        licence: as the hub abbreviates it, e.g. apache-2.0.

    Raises:
        ConfigError: the method trains nothing, the settings are not the run's or not those of its scores, or the
            base's name on the hub is not known.
        CheckpointError: the run's training has not ended, its adapter is damaged, or `output` exists; or see `settled`.
    """
    run = RunDirectory(config.run_dir)
    if not config.recipe.trains:
        raise ConfigError(f"method={config.method} trains nothing", fix="there is no adapter to push; share the base")
    run.check_trained(config)
    check_new(output)
    settled(config)
    shared = _shared(config, base)
    run.check(config, train=False)
    _check_scored(run, config)
    with new_directory(output) as folder:
        (folder / "adapter").mkdir()
        _write(run, config, shared, folder, licence)
    return output


def _shared(config: Config, base: str | None) -> Config:
    """The settings without this machine's places."""
    name = base or config.model.base
    if not _HUB_NAME.fullmatch(name) or (base is None and Path(name).exists()):
        problem = f"the base {name!r} is not known by a name on the Hugging Face hub, so others could not load it"
        raise ConfigError(problem, fix="give its name there: --base OWNER/NAME; if it has none, upload it first")
    if config.source.mt_encoder is not None and is_path(config.source.mt_encoder):
        problem = f"source.mt_encoder={config.source.mt_encoder!r} is a local directory, which others do not have"
        raise ConfigError(problem, fix="give its name on the hub: source.mt_encoder=facebook/nllb-200-distilled-600M")
    settings = config.model_dump(mode="json")
    settings |= {"run_dir": ".", "cache_dir": Config.model_fields["cache_dir"].default}
    settings["deepspeed"] = config.deepspeed if is_name(config.deepspeed) else AUTO
    settings["model"]["base"] = name
    settings["task"]["data_dir"] = TaskConfig.model_fields["data_dir"].default
    settings["translate"]["directory"] = TranslateConfig().directory
    if is_path(config.translate.model):
        settings["translate"]["model"] = TranslateConfig().model
    return parse_config(settings, origin=CONFIG)


def _check_scored(run: RunDirectory, config: Config) -> None:
    """Refuse other settings than the test scores were made with: the card tells those of both."""
    differ = changes(RunResult(run.path, config).settings, config)
    if differ:
        made = ", ".join(f"{name}={before!r}, not {now!r}" for name, (before, now) in differ.items())
        again = " ".join(f"{name}={json.dumps(before)}" for name, (before, _) in differ.items())
        wanted = [f"{name}={json.dumps(now)}" for name, (_, now) in differ.items()]
        raise ConfigError(
            f"{run.path} was scored with other settings: {made}",
            fix=f"set {again}, or score it again: {shlex.join(['flare-ds', 'evaluate', str(run.path), *wanted])}",
        )


def _write(run: RunDirectory, config: Config, shared: Config, folder: Path, licence: str | None) -> None:
    keep_task_file(config.task.path, folder)
    if config.task.path is not None:
        name = f"task{Path(config.task.path).suffix}"
        shared = shared.having("task", path=name)
        record = folder / "task_file.json"
        write_json(record, parse_object(record.read_bytes()) | {"path": name})
    base = run.record(BASE)
    same = base.get("name") == shared.model.base and is_commit(base.get("fingerprint"))
    if same:
        write_json(folder / BASE, base)
    _write_adapter(run.path / "adapter", folder / "adapter", shared, same_base=same)
    for name in (CACHE, VERSIONS, TRAINING):
        write_json(folder / name, run.read(name))
    test = run.read(METRICS) if run.finished else None
    scored = test and {"examples": test["num_examples"], **test["figures"]}
    write_text(folder / CONFIG, shared.to_yaml())
    write_text(folder / CARD, card_text(folder / "adapter", shared, task_of(config.task), test=scored, licence=licence))


def _write_adapter(source: Path, target: Path, shared: Config, *, same_base: bool) -> None:
    """The adapter's two files, which name the base and the MT encoder by their names on the hub.

    A base is known by a checksum of its directory or by its commit on the hub. The one does not tell the other, so
    only the one who trained can say that they are the same: what was kept stays where the name is the same, too.
    """
    settings = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = shared.model.base
    if _ENCODER in settings.get(SECTION, {}):
        settings[SECTION][_ENCODER] = shared.source.mt_encoder
    write_json(target / SETTINGS, settings)
    tensors = read_weights(source)
    with open_tensors(source / WEIGHTS) as file:
        metadata = dict(file.metadata() or {})
    kept = parse_object(metadata.get(KEPT, "{}"))
    if not same_base:
        kept.pop("base", None)
    save_file(tensors, target / WEIGHTS, metadata=metadata | {KEPT: json_text(kept)})
