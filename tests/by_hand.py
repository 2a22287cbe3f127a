"""Rows, batches and small models made by hand, for the tests of the two-stream model.

Nothing here uses the package's own collate, loading or command line, so those are not trusted with checking themselves.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from flare_ds.adapters.inject import inject_adapter
from flare_ds.adapters.passes import ADAPTER
from flare_ds.batches.collate import NO_TARGET, Batch
from flare_ds.config import Config
from flare_ds.models.head import use_head
from flare_ds.models.two_stream import TwoStreamModel
from tests.forms import PAPER_FORM
from tests.oracle import Base, Oracle, Row, Visit
from tests.small_models import VOCAB, small_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MT_WIDTH = 6  # of an MT encoder's states
LABELS = {"yes": 5, "no": 9, "perhaps": 30}  # label words, and the token of each
# of a row: (prompt, answer) lengths of three sources, then of the target. Sources longer than the target, equal,
# shorter and missing, in prompt and answer alike.
LENGTHS = [
    ([(4, 3), (2, 1), (0, 0)], (3, 2)),
    ([(3, 1), (5, 2), (4, 3)], (5, 3)),
    ([(5, 2), (3, 3), (1, 1)], (2, 1)),
    ([(0, 0), (3, 2), (2, 2)], (2, 2)),
    ([(0, 0), (0, 0), (0, 0)], (1, 2)),
]


def make_config(
    *,
    method: str = "flare",
    sources: int = 1,
    objective: str = "vocabulary",
    checkpointing: bool = False,
    provider: str = "lockstep",
    mixup: dict[str, Any] | None = None,
    **adapter: Any,
) -> Config:
    languages = ["de", "fr"][: sources - 1]
    return Config.model_validate(
        {
            "method": method,
            "run_dir": "unused",
            "model": {"base": "unused", "dtype": "float32"},
            "task": {
                "name": "unused",
                "data_dir": "unused",
                "target_language": "pl",
                "extra_source_languages": languages,
            },
            "source": {"provider": provider, "mt_encoder": "unused", "mt_language": "unused"},
            "adapter": {"r": 4, "alpha": 8, "target_modules": TARGETS, **PAPER_FORM, **adapter},
            "mixup": mixup or {},
            "train": {"steps": 1, "objective": objective, "gradient_checkpointing": checkpointing},
        }
    )


def make_rows(sources: int = 1, lengths: list = LENGTHS, *, seed: int = 3) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, VOCAB, (n,), generator=generator).tolist()  # noqa: E731
    return [
        Row(draw(target), draw(answer), [(draw(p), draw(a)) for p, a in of_sources[:sources]])
        for of_sources, (target, answer) in lengths
    ]


def make_batch(
    rows: list[Row],
    config: Config,
    *,
    left: int = 0,
    right: int = 0,
    pad_seed: int | None = None,
    everywhere: bool = False,
    source_targets: bool = False,
) -> Batch:
    """Lay rows out as a batch.

    Args:
        rows: all with the same number of sources.
        config: method, sources, objective and span decide what is laid out.
        left: further columns of padding on the left.
        right: and on the right.
        pad_seed: fill the padding with random tokens; None: with 0.
        everywhere: take the logits of all columns, not of the answers only.
        source_targets: the source rows are to predict their answers, too.
    """
    labels, full = config.train.objective == "labels", config.adapter.span == "full"
    sources = max(config.sources, config.streams_beside)
    lines = [(*row.sources[q],) for q in range(sources) for row in rows]
    lines = [(prompt, answer[:-1] if (full or source_targets) and not labels else []) for prompt, answer in lines]
    lines += [(row.target, [] if labels else row.answer[:-1]) for row in rows]
    end = left + max(len(prompt) for prompt, _ in lines)
    columns = end + max(len(answer) for _, answer in lines) + right
    ids = torch.zeros(len(lines), columns, dtype=torch.long)
    if pad_seed is not None:
        ids = torch.randint(0, VOCAB, ids.shape, generator=torch.Generator().manual_seed(pad_seed))
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for line, (prompt, answer) in enumerate(lines):
        for k, token in enumerate(prompt + answer):
            column = end - len(prompt) + k
            ids[line, column], mask[line, column], positions[line, column] = token, 1, k
    wanted = [[row.answer[0] % len(LABELS)] if labels else row.answer for row in rows]
    if source_targets:  # of the one source; those of the target go on being the last
        said = [(row.answer if labels else answer) if prompt else [] for row in rows for prompt, answer in row.sources]
        wanted = [[token % len(LABELS) for token in answer[:1]] if labels else answer for answer in said] + wanted
    answers = torch.full((len(wanted), max(map(len, wanted))), NO_TARGET)
    for line, answer in enumerate(wanted):
        answers[line, : len(answer)] = torch.tensor(answer)
    longest = [max([1, *(len(prompt) for prompt, _ in part)]) for part in (lines[: -len(rows)], lines[-len(rows) :])]
    count = lambda of: torch.tensor([len(line[of]) for line in lines]).view(-1, len(rows))[:-1]  # noqa: E731
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        source_lengths_SB=count(0),
        source_answers_SB=count(1) if full and config.sources else None,
        target_lengths_B=torch.tensor([len(row.target) for row in rows]),
        answer_columns_N=torch.arange(columns) if everywhere else torch.arange(answers.shape[1]) + end - 1,
        answers_BN=answers[-len(rows) :],
        weights_B=torch.ones(len(rows)),
        prompt_columns=end,
        first_columns=(0, 0) if everywhere else (end - longest[0], end - longest[1]),
        source_targets_SBN=answers[None, : len(rows)] if source_targets else None,
    )


def build(model_name: str, config: Config, *, layers: int = 2, words: list[list[int]] | None = None) -> TwoStreamModel:
    """A small model with an adapter that is no longer fresh, in training mode; its label words may be others."""
    base, _ = small_model(model_name, layers=layers)
    peft_model = inject_adapter(base, config.adapter, sources=config.sources, seed=7)
    words = words or [[token] for token in LABELS.values()]
    use_head(
        base, label_tokens=words if config.train.objective == "labels" else None, trained=config.adapter.train_head
    )
    projection = nn.Linear(MT_WIDTH, peft_model.config.hidden_size) if config.reads_mt_encoder else None
    model = TwoStreamModel(peft_model, config, projection).train()
    generator, of_gates = torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # with B = 0 the gradient of A is exactly 0 and proves nothing
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        elif "mixing" in name:
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        elif "source_scores" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 32
        elif "opening" in name:  # gates of a size of about 1, either way; no other method's weights depend on them
            parameter.data = torch.randn(parameter.shape, generator=of_gates) / 32
    return model


@cache
def oracle_base(model_name: str, layers: int = 2) -> Base:
    """The frozen model of `build`, for the oracle, in float64."""
    base, settings = small_model(model_name, layers=layers)
    return Base({name: parameter.detach().double() for name, parameter in base.named_parameters()}, settings)


def make_oracle(model: TwoStreamModel, base: Base, config: Config) -> Oracle:
    """The oracle with a float64 copy of what trains in the model."""
    trained = {
        short_name(name): parameter.detach().double().requires_grad_()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    rows = list(LABELS.values()) if config.train.objective == "labels" else None
    return Oracle(base, trained, config.adapter, rows)


def short_name(name: str) -> str:
    """The oracle's name of a parameter."""
    return name.removeprefix("model.base_model.model.").replace(f".{ADAPTER}", "")


class ProjectedBase(Base):
    """The oracle's base, whose source in every layer is the projected state of the encoder."""

    encoded: dict[int, Tensor]
    trained: dict[str, Tensor]

    def read(self, tokens: list[int]) -> list[Visit]:
        weight, bias = self.trained["projection.weight"], self.trained["projection.bias"]
        states = torch.stack([weight @ vector + bias for vector in self.encoded[tokens[0]]])
        return [Visit(states, states, {})] * self.s.layers
