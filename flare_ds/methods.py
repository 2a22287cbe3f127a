"""The methods that are compared, each declared by what it reads, what meets it on the way, and whether it trains.

                    the row is       what meets it              where         trains
    zero_shot       target           –                          –             nothing
    translate_test  source           –                          –             nothing
    zero_shot_both  source + target  –                          –             nothing
    lora            target           –                          –             the adapter
    source_lora     source           –                          –             the adapter
    input_fusion    source + target  –                          –             the adapter
    x_mixup         target           the source's states        one layer     the adapter, the mixing layer
    flare           target           the source's states        bottleneck    the adapter
    flare_mt        target           an MT encoder's states     bottleneck    the adapter, a projection
    source_prefix   behind source    the source's keys          attention     the adapter
    late            target           the source's label scores  its own ones  the adapter

Everything else asks these attributes, never a method's name: a further method of these pieces is a further entry here.
Pieces that do not go together are refused: what reads the attributes would leave one out, and run another method.
"""

from dataclasses import dataclass
from typing import Literal

from flare_ds.exceptions import ConfigError
from flare_ds.registry import Registry

Reads = Literal["target", "source", "joint", "behind"]
Fuses = Literal["bottleneck", "mixup", "keys"]


@dataclass(frozen=True)
class Method:
    """What one method is made of.

    Attributes:
        reads: whose prompt is the row the model answers: the target's, the source's, the source's and then the
            target's in one row, or of that row what stands behind the source.
        states: whose hidden states meet the row inside the model: the base's of the source text, an MT encoder's of the
            target text, or nobody's.
        fuses: where they meet: in the bottleneck of the adapters, between two layers, or as keys and values that the
            attention reads.
        trains: whether it trains an adapter on the target language.
        late: whether, once it is trained, the frozen base's label scores of the source are added to its own.

    Raises:
        ConfigError: these pieces do not go together.
    """

    reads: Reads = "target"
    states: Literal["source", "mt_encoder"] | None = None
    fuses: Fuses | None = None
    trains: bool = True
    late: bool = False

    def __post_init__(self) -> None:
        in_bottleneck = self.fuses == "bottleneck"
        for broken, fix in (
            ((self.states is None) != (self.fuses is None), "give both states and fuses, or neither"),
            (self.states == "mt_encoder" and not in_bottleneck, "use fuses='bottleneck' with states='mt_encoder'"),
            (
                (self.reads == "behind") != (self.fuses == "keys"),
                "give both reads='behind' and fuses='keys'; or none",
            ),
            ((in_bottleneck or self.fuses == "mixup") and not self.trains, f"fuses={self.fuses!r} needs trains=True"),
        ):
            if broken:
                raise ConfigError(f"{self} is made of pieces that do not go together", fix=fix)

    @property
    def adapts_source(self) -> bool:
        """Whether the source's rows go through the adapter, too: then those of no other run are the same."""
        return self.fuses == "mixup"

    @property
    def lines_up_sources(self) -> bool:
        """Whether of several sources each stands at the positions behind the one before it."""
        return self.fuses == "keys"

    @property
    def trains_on_source(self) -> bool:
        """Whether a row is read with its source while the method trains, and could be read without it."""
        return self.trains and (self.reads in ("joint", "behind") or self.states == "source")

    @property
    def needs_source(self) -> bool:
        """Whether a row must have a text in another language than the target's."""
        return self.reads != "target" or self.states == "source" or self.late


METHODS: Registry[Method] = Registry("method")
"""In the order of the paper's tables, ours among them."""

for _name, _method in {
    "zero_shot": Method(trains=False),
    "translate_test": Method(reads="source", trains=False),
    "zero_shot_both": Method(reads="joint", trains=False),
    "lora": Method(),
    "source_lora": Method(reads="source"),
    "input_fusion": Method(reads="joint"),
    "x_mixup": Method(states="source", fuses="mixup"),
    "flare": Method(states="source", fuses="bottleneck"),
    "flare_mt": Method(states="mt_encoder", fuses="bottleneck"),
    "source_prefix": Method(reads="behind", states="source", fuses="keys"),
    "late": Method(late=True),
}.items():
    METHODS.add(_name, _method)

SOURCE_ALONE = "translate_test"
"""The method that gives a row's source the label scores that are added late."""
