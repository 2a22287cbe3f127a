"""What `make_room` frees of models that the ranks shared, and what it leaves."""

import json
from pathlib import Path

from tests.distributed import run_ranks
from tests.toy import toy_settings, write_config

ADAPTER = {"pairing": "output", "fused_modules": ["q_proj", "v_proj"]}


def config_of(root: Path, method: str, source: dict) -> str:
    settings = toy_settings(root, method=method, name=method, steps=3, batch_size=8, validate_every=3, save_every=3)
    settings["task"] |= {"train_rows": 24, "validation_rows": 8, "test_rows": 8}
    settings |= {"adapter": ADAPTER, "source": source, "evaluate": {"whole_model": False}}
    return str(write_config(settings))


def test_a_shared_base_that_nobody_holds_is_freed_and_those_behind_it_learn_and_answer_as_before(
    tmp_path: Path,
) -> None:
    configs = [config_of(tmp_path, "lora", {}), config_of(tmp_path, "flare", {"provider": "cached"})]
    out = tmp_path / "found.json"
    run_ranks(["tests.runtime.room_worker", str(out), *configs], 2)
    found = json.loads(out.read_text())
    lora, flare, lora_again, flare_again = found["runs"]
    assert (len(lora["there"]), len(flare["there"])) == (2, 3), "trained, asked; and the one that made the states"
    assert not [run for run in found["runs"] if any(run["there"])]
    assert len(found["there"]) == 10 and not any(found["there"])
    for first, second in ((lora, lora_again), (flare, flare_again)):
        assert (second["losses"], second["score"]) == (first["losses"], first["score"])
    assert found["held"] == lora["losses"][:2], "one that was held all the while"
