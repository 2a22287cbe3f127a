"""A training loop of your own for a fused adapter, in plain PyTorch: no launcher, no config, no DeepSpeed.

    python examples/minimal_loop.py MODEL ROWS OUTPUT [LEARNING_RATE]

MODEL is a directory or hub name that transformers can load. Each line of the file ROWS is a row:
{"target": "Czekałem tygodniami", "source": "I waited for weeks", "label": "negative"}
A fifth of the rows is held out. The adapter is written to OUTPUT, and read back.
"""

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import flare_ds

STEPS, BATCH = 100, 16
ADAPTER = {"r": 8, "target_modules": "all-linear"}


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Rows of unequal length, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt of a text, in either language, as token ids."""
    return tokenizer(f"Review: {text}\nSentiment:")["input_ids"]


def answer(label: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The answer after a prompt, as token ids."""
    return tokenizer(f" {label}", add_special_tokens=False)["input_ids"]


def batch_of(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """A batch: the target's prompts with their answers, and the source's prompts; a row may have no source."""
    pairs = [(prompt(row["target"], tokenizer), answer(row["label"], tokenizer)) for row in rows]
    sources = [prompt(row["source"], tokenizer) if row.get("source") else [] for row in rows]
    return {
        "input_ids": padded([asked + said for asked, said in pairs], 0),
        "attention_mask": padded([[1] * len(asked + said) for asked, said in pairs], 0),
        "labels": padded([[-100] * len(asked) + said for asked, said in pairs], -100),
        "source_input_ids": padded(sources, 0),
        "source_attention_mask": padded([[1] * len(source) for source in sources], 0),
    }


@torch.no_grad()
def accuracy(model: torch.nn.Module, rows: list[dict], labels: list[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """How often the right label's first token is the most likely of all labels' first tokens."""
    first = [answer(label, tokenizer)[0] for label in labels]
    assert len(set(first)) == len(labels), "two labels begin with the same token: choose other words"
    model.eval()
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    logits = torch.cat([model(**batch_of(part, tokenizer)).logits[:, 0] for part in parts])
    said = [labels[number] for number in logits[:, first].argmax(-1).tolist()]
    return sum(word == row["label"] for word, row in zip(said, rows, strict=True)) / len(rows)


def main(base: str, rows_file: str, output: str, learning_rate: str = "5e-4") -> None:
    """Train and save an adapter, then read it back."""
    rows = [json.loads(line) for line in Path(rows_file).read_text(encoding="utf-8").strip("\n").split("\n")]
    draw = random.Random(0)
    draw.shuffle(rows)
    labels = sorted({row["label"] for row in rows})
    held_out, rows = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = flare_ds.adapt(AutoModelForCausalLM.from_pretrained(base), ADAPTER)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=float(learning_rate))
    for step in range(1, STEPS + 1):
        model.train()
        loss, _ = model(**batch_of(draw.sample(rows, min(BATCH, len(rows))), tokenizer))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}, held out {accuracy(model, held_out, labels, tokenizer):.3f}")
    model.save_adapter(output)
    again = flare_ds.adapt(AutoModelForCausalLM.from_pretrained(base), ADAPTER)
    again.load_adapter(output)
    print(f"read back: held out {accuracy(again, held_out, labels, tokenizer):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
