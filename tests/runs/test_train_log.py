"""The log of a training, read whole and from its end."""

import json
from itertools import accumulate
from pathlib import Path

from flare_ds.runs import RunDirectory


def test_the_end_of_a_log_is_the_lines_that_begin_in_it(tmp_path: Path) -> None:
    lines = [{"step": step, "skipped_rows": ["zażółć"] * (step % 3)} for step in range(7)]
    texts = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]
    cut_off = b'{"step": 7, "skipped_rows": ["za'
    (tmp_path / "train_log.jsonl").write_bytes(b"".join(texts) + cut_off)
    begins = [0, *accumulate(map(len, texts))]
    total = begins[-1] + len(cut_off)
    run = RunDirectory(tmp_path)
    assert run.train_log() == lines
    for last in range(total + 3):
        wanted = [line for line, begin in zip(lines, begins, strict=False) if begin >= total - last]
        assert run.train_log(last) == wanted, last
