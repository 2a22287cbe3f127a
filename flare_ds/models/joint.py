"""Several cells over one base, in one root forward: the sources once, each cell's rows with its own adapter.

    embed      [X + B of all cells, L, D]     distinct source rows, then the cells' own rows
    layer i    sources once, adapters off      each weight is gathered once for all
               cell 1: its own rows            in a pass of its own, by its own method: what it does to its rows, and to
               cell 2: its own rows            how many columns, is what it does alone
    norm, head all cells' rows; where heads train, each cell's by its own
    loss       one of each cell                of its own rows, so each adapter gets its own gradient

Between the layers the cells' states, of other rows and columns each, are one tensor [1, T, D]: hooks on layers see all.
A batch of one cell goes through the same layers as it does alone.

Own are the target's rows, and of a cell that reads sources with its adapter these as well.

Legend: X distinct source rows, B a cell's own rows, L columns, T positions of all cells, D width, C cells, N answer
positions, K logits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from flare_ds.adapters.decoder import decoder_layers
from flare_ds.adapters.inject import inject_adapter
from flare_ds.batches.collate import Batch
from flare_ds.batches.joined import JointBatch
from flare_ds.config import Config
from flare_ds.models.draws import OwnDraws
from flare_ds.models.embedding import read_on_host
from flare_ds.models.head import use_head
from flare_ds.models.joint_head import CellHeads, use_cell_heads
from flare_ds.models.joint_layer import Forward, JointLayer, UnderWay
from flare_ds.models.loading import load_base
from flare_ds.models.mt_encoder import make_projection
from flare_ds.models.source_pass import Beside
from flare_ds.models.two_stream import TwoStreamModel


class JointModel(nn.Module):
    """A base with the adapters of several cells.

    Args:
        cells: each with its adapter among the others; they share the base.

    Attributes:
        draws: of each cell that has dropout, its random numbers.
    """

    def __init__(self, cells: Sequence[TwoStreamModel]) -> None:
        super().__init__()
        self.model, self.host_rows = cells[0].model, cells[0].host_rows
        self.cells = tuple(cells)
        beside = [part for cell in cells for part in (cell.projection, cell.mixing)]
        self.beside_adapters = nn.ModuleList(part for part in beside if part is not None)
        self.draws = {number: OwnDraws() for number, cell in enumerate(cells) if cell.config.adapter.dropout}
        self.under_way, layers = UnderWay(), decoder_layers(self.base)
        for layer, *readers in zip(layers, *(cell.streams.layers for cell in cells), strict=True):
            ends = {"is_first": layer is layers[0], "is_last": layer is layers[-1]}
            layer.forward = JointLayer(layer, readers, self.under_way, **ends)
        if isinstance(head := self.base.get_output_embeddings(), CellHeads):
            head.under_way = self.under_way

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model, adapters inside it."""
        return self.cells[0].base

    def train(self, mode: bool = True) -> "JointModel":
        """Put only the adapters in training mode, those of all cells; see `TwoStreamModel.train`."""
        self.cells[0].train(mode)  # it walks over the model, which all share
        for part in (self, *self.cells):
            part.training = mode
        return self

    def seed(self, seeds: Mapping[int, int]) -> None:
        """Begin the random numbers of cells' dropout anew."""
        for cell, seed in seeds.items():
            if cell in self.draws:
                self.draws[cell].begin(seed, self.base.device)

    def forward(
        self, batch: JointBatch | Batch, *, cell: int = 0, with_loss: bool = False, **how: Any
    ) -> Tensor | tuple[Tensor, ...]:
        """Of a joint batch what each cell says of its rows, in its order; or what one cell says of its own.

        Args:
            batch: the rows.
            cell: whose a batch is that is not joint.
            with_loss: return the losses [C] instead of logits [B, N, K] for each cell.
            how: see `TwoStreamModel.forward`.
        """
        if isinstance(batch, Batch):
            self.under_way.asked = cell
            return self.cells[cell].forward(batch, with_loss=with_loss, **how)
        if self.host_rows is not None:
            self.host_rows.read(batch)
        with self._reading(batch) as (positions, forward):
            logits_BNK = self.base(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=positions,
                logits_to_keep=batch.answer_columns_N,
                use_cache=False,
            ).logits
            of_cells = logits_BNK.split([rows for rows, _ in forward.shapes.values()])
            shares = zip(batch.shares.items(), of_cells, strict=True)
            own = {cell: logits[:, : len(share.batch.answer_columns_N)] for (cell, share), logits in shares}
            if not with_loss:
                return tuple(own.values())
            losses = [self.cells[cell].streams.loss(own[cell], share.batch) for cell, share in batch.shares.items()]
            return torch.stack(losses)

    @contextmanager
    def _reading(self, batch: JointBatch) -> Iterator[tuple[Tensor, Forward]]:
        """Let the layers inside know of the batch; yields its positions, and what they tell of it."""
        positions = batch.position_ids.clone()
        with ExitStack() as stack:
            for cell, share in batch.shares.items():
                streams, rows = self.cells[cell].streams, share.rows.stop - share.rows.start
                sources = streams.sources_of(share.batch)
                at_head = slice(share.rows.start - batch.sources, share.rows.stop - batch.sources)
                stack.enter_context(streams.reading(sources, at_head=at_head))
                own = share.moved(share.every_column)
                positions[share.rows, own] = streams.positions(share.batch, sources)[-rows:]
            everybody = slice(0, batch.input_ids.shape[1])
            beside = Beside(batch.sources, (batch.source_columns, everybody))
            forward = self.under_way.forward = Forward(batch, beside, self.draws if self.training else {})
            try:
                yield positions, forward
            finally:
                self.under_way.forward = None


def build_joint_model(
    configs: Sequence[Config], *, label_tokens: list[list[int]], device: torch.device | None = None
) -> JointModel:
    """Load the base of several cells and add a fresh adapter for each; see `build_model`."""
    base, names = load_base(configs[0].model, device), [f"cell{number}" for number in range(len(configs))]
    model: PreTrainedModel | PeftModel = base
    for config, name in zip(configs, names, strict=True):
        model = inject_adapter(model, config.adapter, sources=config.sources, seed=config.train.seed, name=name)
    words, trained = configs[0].train.objective == "labels", configs[0].adapter.train_head
    use_head(base, label_tokens=label_tokens if words else None, trained=trained)
    if trained:
        use_cell_heads(base, names)
    host_rows = read_on_host(base, configs[0].model.base)
    return JointModel(
        [
            TwoStreamModel(model, config, make_projection(base, config), host_rows, among=name)
            for config, name in zip(configs, names, strict=True)
        ]
    )
