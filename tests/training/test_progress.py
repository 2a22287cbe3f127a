"""What a run tells while it trains: in a log a line a minute that names the run, and nothing that redraws itself."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from flare_ds import progress
from flare_ds.config import Config
from flare_ds.training import records
from flare_ds.training.records import Records
from tests.toy import toy_settings

Said = pytest.CaptureFixture[str]


def told(root: Path, capsys: Said) -> list[str]:
    made = toy_settings(root, name="pl/lora-seed1") | {"tracking": {"to": []}}
    (root / "pl/lora-seed1").mkdir(parents=True)
    capsys.readouterr()
    kept = Records(Config.model_validate(made), first_step=0, steps=3, enabled=True)
    counted = {"tokens": 9, "padded_tokens": 10, "flops": 100, "examples": 4}
    for step in (1, 2, 3):
        kept.step(step, loss=step / 4, grad_norm=1.0, learning_rate=0.1, step_seconds=2.5, **counted)
    kept.validation(3, score=0.5, figures={"accuracy": 0.5})
    kept.close()
    return capsys.readouterr().err.split("\n")[:-1]


def test_in_a_log_a_run_says_once_a_minute_how_far_it_is(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(tmp_path / "quick", capsys) == ["pl/lora-seed1: step 3: validation accuracy 0.500"]
    monkeypatch.setattr(records, "IN_A_LOG", 0)
    slow = told(tmp_path / "slow", capsys)
    assert slow[:2] == [f"pl/lora-seed1: step {n} of 3: loss {n / 4:.3f}, 2.50 s a step" for n in (1, 2)]
    assert len(slow) == 4 and not any("\r" in line or "\x1b" in line for line in slow)


def test_what_a_kill_left_of_a_log_is_gone_on_with(tmp_path: Path, capsys: Said) -> None:
    """A line cut short, one of zeros as a power cut leaves, one with a character that ends lines elsewhere."""
    told(tmp_path, capsys)
    log = tmp_path / "pl/lora-seed1/train_log.jsonl"
    first, second, *_ = log.read_bytes().splitlines()
    odd = '{"step": 2, "skipped_rows": ["a\u2028b"]}'
    log.write_bytes(b"\n".join([first, b"\0\0\0", odd.encode(), second, second[:20]]))
    made = toy_settings(tmp_path, name="pl/lora-seed1") | {"tracking": {"to": []}}
    Records(Config.model_validate(made), first_step=2, steps=3, enabled=True).close()
    assert log.read_text("utf-8").split("\n") == [first.decode(), odd, second.decode(), ""]


def test_on_a_terminal_it_shows_a_bar(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    drawn = "\n".join(told(tmp_path, capsys))
    assert "pl/lora-seed1" in drawn and "validation accuracy 0.500" in drawn


def test_a_bar_in_a_log_has_nothing_to_say_of_what_is_quick(capsys: Said) -> None:
    assert list(progress.bar(range(3), desc="quick")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


class Pictures:
    """Trackers that keep the pictures they are shown, as step and width."""

    def __init__(self, config: Config, *, first_step: int) -> None:
        self.shown: list[tuple[int, int]] = []

    def picture(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        self.shown.append((step, image_HWC.shape[1]))

    def scalars(self, *_: object) -> None: ...

    def close(self) -> None: ...


def test_the_picture_of_the_sources_share_is_drawn_as_it_grows_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of validations were drawn anew at each; a run that goes on draws those before, too."""
    monkeypatch.setattr("flare_ds.training.records.Trackers", Pictures)
    config = Config.model_validate(toy_settings(tmp_path))
    Path(config.run_dir).mkdir()
    kept = Records(config, first_step=0, steps=700, enabled=True)
    for step in range(1, 600):
        kept.fusion(step, {"model.layers.0.o_proj": 0.5})
    pictures = cast(Pictures, kept._trackers).shown
    kept.close()
    assert [step for step, _ in pictures[:12]] == [*range(1, 11), 11, 13]
    assert len(pictures) < 60 and pictures[-1][0] == 599
    assert max(width for _, width in pictures) <= 200 * 24
    kept = Records(config, first_step=599, steps=700, enabled=True)
    kept.fusion(600, {"model.layers.0.o_proj": 0.5})
    pictures = cast(Pictures, kept._trackers).shown
    kept.close()
    assert pictures == [(600, 200 * 24)]
