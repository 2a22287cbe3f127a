"""Every shipped YAML validates, says of every setting what its type and default are, and fits the model it names."""

import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flare_ds.adapters.inject import check_adapter, inject_adapter
from flare_ds.config import Config
from flare_ds.evaluation.answerable import check_answers
from flare_ds.models.loading import load_shape
from flare_ds.models.two_stream import TwoStreamModel
from flare_ds.runtime.engine import count_trainable
from flare_ds.settings import load_config
from flare_ds.sweep.grid import read_sweep
from flare_ds.sweep.plan import load_sweep
from flare_ds.tasks.load import task_of
from tests.distributed import REPOSITORY
from tests.small_models import small_model

CONFIGS = sorted((REPOSITORY / "launchers/configs").rglob("*.yaml"))
SWEEPS = [path for path in CONFIGS if "grid" in yaml.safe_load(path.read_text())]
STUDIES = [path for path in SWEEPS if read_sweep(path).score == "validation"]
RUNS = [path for path in CONFIGS if path not in SWEEPS]
LONG, LONG_RUNS = ([path for path in paths if not path.stem.startswith("first_")] for paths in (CONFIGS, RUNS))
"""Those that show every setting; a first run and a first sweep show how short they can be."""
MENTIONED = re.compile(r"#.*\((.+)\)")


def test_there_are_all_kinds() -> None:
    assert RUNS and SWEEPS and STUDIES


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_shipped_run_validates_and_round_trips(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    saved = tmp_path / "config.yaml"
    saved.write_text(config.to_yaml())
    assert load_config(saved) == config


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_validates(path: Path) -> None:
    cells = load_sweep(path).cells
    assert cells and read_sweep(path).variants.keys() <= {cell.method for cell in cells}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_shipped_trains_on_answers_as_its_task_has_them(path: Path) -> None:
    configs = [run.config for run in load_sweep(path).runs] if path in SWEEPS else [load_config(path)]
    for config in configs:
        check_answers(config, task_of(config.task))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_can_be_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant is in a grid, no two are the same run, each fits a Gemma 3, and each is asked about."""
    cells, variants = load_sweep(path).cells, read_sweep(path).variants
    assert {cell.method for cell in cells} == variants.keys()
    settings = [cell.config.model_dump_json(exclude={"run_dir"}) for cell in cells]
    assert len(set(settings)) == len(settings) == 54
    base, _ = small_model("gemma3", layers=1)
    for cell in cells:
        check_adapter(base, cell.config)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    study = importlib.import_module("study_tables").load_study(path, REPOSITORY / "benchmarks/fusion_questions.yaml")
    asked = {(name, seed) for one in study.questions for name in (*one.variants, one.against) for seed in one.seeds}
    assert asked == study.runs.keys()


@pytest.mark.parametrize("path", LONG, ids=lambda path: path.stem)
def test_every_setting_is_commented_with_type_and_default(path: Path) -> None:
    settings, _, _ = path.read_text().partition("\nvariants:")  # of a study, a line each
    for line in settings.splitlines():
        key, _, value = line.partition(": ")
        if line.lstrip().startswith("#") or not value.partition("#")[0].strip():
            continue
        assert MENTIONED.search(line) or not re.match(r"\s+\w+$", key), f"{path.name}: no (type, default) in {line!r}"


def leaves(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting, by its full name."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= leaves(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


@pytest.mark.parametrize("path", LONG_RUNS, ids=lambda path: path.stem)
def test_a_shipped_run_names_every_setting(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    named = {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in settings.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert named == leaves(Config).keys()


def test_the_stated_defaults_are_the_real_ones() -> None:
    known, checked = leaves(Config), 0
    for path in CONFIGS:
        section = ""
        for line in path.read_text().splitlines():
            section = line.split(":")[0].strip() if re.match(r"\s*\w+:\s*(#.*)?$", line) else section
            match = re.match(r"\s+(\w+): .*#.*\(.*default (\[.*\]|[^)=]+?)( = all)?\)", line)
            if match and f"{section}.{match[1]}" in known:
                default = known[f"{section}.{match[1]}"].default
                stated = yaml.safe_load(match[2])
                real = list(default) if isinstance(default, tuple) else default
                assert stated == real or float(stated) == real, f"{path.name}: {line}"  # YAML reads 5e-4 as text
                checked += 1
    assert checked > 100


@dataclass(frozen=True)
class Published:
    """A model's published configuration and size.

    Attributes:
        config: what its config.json says, as far as it is not the default.
        parameters: of the base.
        adapted: elements of A and B of one layer's linear layers, over r: in plus out features of each.
    """

    config: dict[str, Any]
    parameters: int
    adapted: int

    @property
    def trained(self) -> int:
        """Elements of an adapter with r=8 on all linear layers."""
        return 8 * self.config["num_hidden_layers"] * self.adapted


PUBLISHED = {
    "llama3.1-8b": Published(
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "tie_word_embeddings": False,
        },
        parameters=8_030_261_248,
        adapted=2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336),  # q and o, k and v, the MLP
    ),
    "gemma2-9b": Published(
        config={
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "vocab_size": 256000,
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        parameters=9_241_705_984,
        adapted=2 * (3584 + 16 * 256) + 2 * (3584 + 8 * 256) + 3 * (3584 + 14336),
    ),
}


@pytest.mark.parametrize("path", LONG_RUNS, ids=lambda path: path.stem)
def test_a_shipped_run_builds_its_adapter(path: Path, tmp_path: Path) -> None:
    """On the meta device: every shape, and no memory."""
    published = PUBLISHED[path.stem]
    (tmp_path / "config.json").write_text(json.dumps(published.config))
    config = load_config(path, [f"model.base={tmp_path}"])
    base = load_shape(config.model)
    assert base.num_parameters() == published.parameters
    with torch.device("meta"):
        model = inject_adapter(base, config.adapter, sources=config.sources, seed=config.train.seed)
        two_streams = TwoStreamModel(model, config)
    assert all(tensor.is_meta for tensor in model.parameters())
    assert count_trainable(two_streams) == published.trained
    layers = range(published.config["num_hidden_layers"])
    fused = {f"base_model.model.model.layers.{i}.self_attn.{name}" for i in layers for name in ("q_proj", "v_proj")}
    assert two_streams.streams is not None and two_streams.streams.fused.keys() == fused


def test_the_adapters_are_as_large_as_the_papers() -> None:
    assert PUBLISHED["llama3.1-8b"].trained == 20_971_520
    assert PUBLISHED["gemma2-9b"].trained == 27_009_024
