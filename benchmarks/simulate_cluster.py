"""What a step of flare would take on a cluster: predicted by a stated model; prints JSON.

    python benchmarks/simulate_cluster.py [--rows 8] [--length 128] [--source-length 128]

The model, of one micro-step on each GPU and of the step it ends:

    arithmetic  = operations / (peak x efficiency)
    gathers     = gathers a step x bytes of the base x (n - 1) / n / link  +  layers x gathers a step x latency(n)
    host        = layers x seconds a layer
    step        = max(arithmetic, host) + max(0, gathers - overlap x max(arithmetic, host)) + reduction of the adapter

Operations are those of the matrix products and of attention (flare_ds/runtime/costs.py has the rule). A link is the
node's where all n GPUs of a gather share a node, and the network's otherwise. The ways to run:

    lockstep     ZeRO-3 over all GPUs, source and target in one pass: each layer is gathered once for both
    two_passes   ZeRO-3, the source in a whole forward of its own
    hpz          lockstep, with a copy of the base on each node, so that gathers stay inside it
    whole        the base on every GPU: no gathers, no hooks
    together     whole, and four cells (languages, seeds) whose steps read the same English rows share its source pass;
                 the time is a cell's share

`measured` holds what was measured, by other scripts of this directory, on CPUs: the gathers a step of 8 layers, and
the host's seconds a layer. `published` is others' measurement, `assumed` is nobody's. What is called predicted is just
that: no figure of it was measured on a GPU. A way that does not fit the card's memory is null.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GPUS = (1, 8, 64, 512)
NODE = 8
WAYS = ("lockstep", "two_passes", "hpz", "whole", "together")
CELLS = 4
RANK = 8
BYTES = 2  # of a frozen weight, bfloat16
CARD = 80e9
PUBLISHED = {"peak": 989e12, "efficiency": 0.41}  # H100, bf16: NeMo AutoModel, Llama-3 8B LoRA, 402 TFLOP/s on one
ASSUMED = {
    "node_link": 300e9,  # bytes/s a GPU, all-gather inside a node (NVLink)
    "network_link": 40e9,  # and between nodes (400 Gb/s a GPU)
    "latency": 20e-6,  # of a collective inside a node; between nodes twice that, and more with their number
    "overlap": 0.8,  # share of the work behind which a gather can hide
    "kept_bytes": 8e6,  # a target token of an 8B model's activations; grows with width x layers
    "runtime_bytes": 3e9,
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that its costs follow from."""

    layers: int
    width: int
    inside: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool

    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of a decoder layer."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        attention = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        return [*attention, (self.width, self.inside), (self.width, self.inside), (self.inside, self.width)]

    @property
    def layer(self) -> int:
        """Elements of a layer's matrices."""
        return sum(rows * columns for rows, columns in self.matrices())

    @property
    def gathered(self) -> int:
        """Elements that a step gathers, once: all but the input embedding."""
        return self.layers * self.layer + self.vocabulary * self.width

    @property
    def elements(self) -> int:
        """Of the base."""
        return self.gathered + (0 if self.tied else self.vocabulary * self.width)

    @property
    def adapter(self) -> int:
        """Elements of the adapter, without the source's A."""
        return self.layers * RANK * sum(rows + columns for rows, columns in self.matrices())


MODELS = {
    "Llama 3.1 8B": Shape(32, 4096, 14336, 32, 8, 128, 128_256, tied=False),
    "Llama 3.1 70B": Shape(80, 8192, 28672, 64, 8, 128, 128_256, tied=False),
    "Gemma 2 9B": Shape(42, 3584, 14336, 16, 8, 256, 256_000, tied=True),
    "Gemma 2 27B": Shape(46, 4608, 36864, 32, 16, 128, 256_000, tied=True),
}


@dataclass(frozen=True)
class Work:
    """Rows of a micro-batch, and their columns in both streams."""

    rows: int
    length: int
    source_length: int


@dataclass(frozen=True)
class Measured:
    """What was measured, of a model of 8 layers: gathers a step over the base's elements; host seconds a layer."""

    lockstep_gathers: float
    two_passes_gathers: float
    hooked_layer: float
    plain_layer: float


def read_measured(results: Path) -> Measured:
    """From the JSONs that `run.py` keeps."""
    gathers = json.loads((results / "gather_volume.json").read_text(encoding="utf-8"))["found"]["variants"]
    host = json.loads((results / "host_time.json").read_text(encoding="utf-8"))["found"]
    return Measured(
        gathers["lockstep"]["ratio"],
        gathers["two_forwards"]["ratio"],
        host["hooked"]["seconds_a_layer"],
        host["plain"]["seconds_a_layer"],
    )


def gathers_a_step(measured: Measured, layers: int, way: str) -> float:
    """Over the base's elements: of 8 layers some stay live between forward and backward, of more layers as many."""
    if way == "two_passes":
        return measured.two_passes_gathers
    return 2 - (2 - measured.lockstep_gathers) * 8 / layers


def operations(shape: Shape, work: Work, way: str) -> float:
    """Of a micro-step: the target's forward and its gradients, and a forward of the source."""
    target, source = work.rows * work.length, work.rows * work.source_length
    scores = 4 * shape.heads * shape.head_width * shape.layers
    trained = target * (4 * shape.layers * shape.layer + 6 * shape.adapter + 3 * scores * work.length)
    passing = source * (2 * shape.layers * shape.layer + scores * work.source_length)
    return trained + passing / (CELLS if way == "together" else 1)


def memory(shape: Shape, work: Work, way: str, gpus: int) -> float:
    """Bytes of a rank: the base or its share, what is gathered, the adapter and its optimizer, activations."""
    base, layer = BYTES * shape.elements, BYTES * shape.layer
    copy = base / NODE if way == "hpz" and gpus > NODE else 0
    held = base if way in ("whole", "together") else base / gpus + copy
    gathered = 0 if way in ("whole", "together") else 2.5 * layer
    trained = 16 * shape.adapter * (CELLS if way == "together" else 1)
    kept = ASSUMED["kept_bytes"] * shape.width * shape.layers / (4096 * 32) * work.rows * work.length
    return held + gathered + trained + kept + ASSUMED["runtime_bytes"]


def link(gpus: int) -> float:
    """Bytes a second and GPU of a collective over so many."""
    return ASSUMED["node_link"] if gpus <= NODE else ASSUMED["network_link"]


def latency(gpus: int) -> float:
    """Seconds until a collective begins to move bytes."""
    return ASSUMED["latency"] * (1 if gpus <= NODE else 2 + gpus / NODE / 16)


def gather_seconds(shape: Shape, measured: Measured, way: str, gpus: int) -> float:
    """Of all gathers of a micro-step."""
    among = min(gpus, NODE) if way == "hpz" else gpus
    if among == 1 or way in ("whole", "together"):
        return 0.0
    gathers = gathers_a_step(measured, shape.layers, way)
    moved = gathers * BYTES * shape.gathered * (among - 1) / among
    return moved / link(among) + gathers * shape.layers * latency(among)


def predict(shape: Shape, work: Work, measured: Measured, way: str, gpus: int) -> dict[str, float] | None:
    """A step of one micro-step on each GPU; None: it does not fit."""
    if memory(shape, work, way, gpus) > CARD:
        return None
    arithmetic = operations(shape, work, way) / (PUBLISHED["peak"] * PUBLISHED["efficiency"])
    host = shape.layers * (measured.plain_layer if way in ("whole", "together") else measured.hooked_layer)
    gathers = gather_seconds(shape, measured, way, gpus)
    reduction = 2 * 4 * shape.adapter * (gpus - 1) / gpus / link(gpus) + (latency(gpus) if gpus > 1 else 0.0)
    busy = max(arithmetic, host)
    seconds = busy + max(0.0, gathers - ASSUMED["overlap"] * busy) + reduction
    parts = {"arithmetic": arithmetic, "host": host, "gathers": gathers, "reduction": reduction}
    return {"seconds": seconds, "rows_per_second": gpus * work.rows / seconds, **parts}


def simulate(work: Work, measured: Measured) -> dict[str, Any]:
    """Every point, with what it rests on."""
    points = {
        (name, gpus): {way: predict(shape, work, measured, way, gpus) for way in WAYS}
        for name, shape in MODELS.items()
        for gpus in GPUS
    }
    return {
        "work": asdict(work),
        "measured": asdict(measured),
        "published": PUBLISHED,
        "assumed": ASSUMED,
        "predicted rows a second": {
            f"{name}, {gpus} GPUs": {way: point and point["rows_per_second"] for way, point in of_way.items()}
            for (name, gpus), of_way in points.items()
        },
        "predicted points": [
            {"model": name, "gpus": gpus, "way": way} | point
            for (name, gpus), of_way in points.items()
            for way, point in of_way.items()
            if point is not None
        ],
    }


def main() -> None:
    """Predict and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch on one GPU")
    parser.add_argument("--length", type=int, default=128, help="columns of the target")
    parser.add_argument("--source-length", type=int, default=128, help="and of the source")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="of run.py (default: beside this)")
    given = parser.parse_args()
    work = Work(given.rows, given.length, given.source_length)
    print(json.dumps(simulate(work, read_measured(given.results)), indent=2))


if __name__ == "__main__":
    main()
