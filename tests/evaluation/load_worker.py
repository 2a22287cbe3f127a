"""A process that imports nothing of DeepSpeed and joins no group asks the runs of every method: `load_worker ROOT OUT`.

What they say of the rows of ROOT/METHOD.jsonl goes to OUT; it works in a directory of its own, and one run was moved.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import flare_ds

CHEAP = not {"torch", "transformers", "numpy", "pydantic"} & set(sys.modules)
METHODS = (
    "zero_shot",
    "translate_test",
    "zero_shot_both",
    "source_lora",
    "lora",
    "input_fusion",
    "x_mixup",
    "flare",
    "flare_mt",
    "source_prefix",
    "late",
)


def ask(run: Path, rows: list[dict]) -> dict:
    model = flare_ds.load(run, device="cpu")
    target, source = ([row.get(side) for row in rows] for side in ("target", "source"))
    written = write(model, target[:3], source[:3])  # first: the other head comes afterwards
    labelled, scores = model.label(target, source), model.scores(target, source)
    (first,) = model.label(target[0], source[0])
    assert write(model, target[:3], source[:3]) == written
    return {
        "id": [row["id"] for row in rows],
        "label": [of_row.label for of_row in labelled],
        "probabilities": [[of_row.probabilities[word] for word in model.labels] for of_row in labelled],
        "scores": scores.tolist(),
        "first": [first.probabilities[word] for word in model.labels],
        "written": written,
    }


def write(model: Any, target: list, source: list) -> list[str] | str:
    """What it writes, or why it does not."""
    try:
        return [answer.text for answer in model.generate(target, source)]
    except flare_ds.ConfigError as error:
        return str(error)


def ask_questions(run: Path, rows: list[dict]) -> dict:
    model = flare_ds.load(run)
    answers = model.generate([row["target"] for row in rows], [row["source"] for row in rows])
    return {
        "id": [row["id"] for row in rows],
        "text": [answer.text for answer in answers],
        "log_probability": [answer.log_probability for answer in answers],
    }


def main(root: Path, out: Path) -> None:
    assert CHEAP, "importing flare_ds imported more"
    os.chdir(out.parent)
    said = {}
    for method in METHODS:
        run = root / method
        if method == "flare":
            run = root / "moved" / method
            run.parent.mkdir()
            (root / method).rename(run)
        said[method] = ask(run, [json.loads(line) for line in (root / f"{method}.jsonl").read_text().splitlines()])
    (root / "moved/flare").rename(root / "flare")
    said["qa"] = ask_questions(root / "qa/flare", json.loads((root / "qa/rows.json").read_text()))
    out.write_text(json.dumps(said))

    import torch.distributed as dist  # torch's models import it; nobody has used it

    assert not dist.is_initialized()
    assert not [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
