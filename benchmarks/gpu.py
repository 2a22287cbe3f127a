"""What a GPU must answer first, one part after the other; prints one JSON. Started by gpu.sh.

    attention   is sdpa's backward finite and eager's, left-padded and with a row of padding alone; cuDNN on, and off
    first_step  is everything on the device, every gradient finite, and the loss that of a CPU in float32
    hooks       of a step under ZeRO-3: how long, how long the device works in it, DeepSpeed's share of Python's time
    whole       the same step without an engine, and the ratio
    memory      peak against the estimate at growing tokens, and what part of what is kept is float32
    quantized   one step on nf4 and int8 bases, and how far their losses are from the base's
    resume      is the loss behind a stop and a resume bit for bit that of a run that was not stopped
    two_gpus    elements gathered on 2 GPUs, where there are two
    speed       tokens a second, operations a second (4 and 6 a weight and token) and peak of an 8B-shaped random base

A part that fails says why, and the others go on. On a CPU, with --tiny, times and memory mean nothing.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from counting import saved_bytes
from gpu_device import Sizes, device_peak, on_gpu, stopping_at, timed, told_to_stop, whole
from step_cost import Training
from world import pairs_config, word_tokenizer, write_base

from flare_ds.config import Config
from flare_ds.data.cache import open_cache, prepare_cache
from flare_ds.models.loading import load_shape
from flare_ds.runtime.costs import Costs
from flare_ds.runtime.engine import make_room
from flare_ds.runtime.joining import join_process_group
from flare_ds.runtime.memory import estimate_memory
from flare_ds.runtime.process_group import device
from flare_ds.training.together import train_together

WARM_UP = 4
BEGAN = time.perf_counter()
LAST_BEGINS_S = 480
"""gpu.sh ends after 600."""


def attention(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Gradients of the embedded tokens, against eager's."""
    found = {}
    for columns in sizes.columns:
        expected = gradients(sizes, directory, columns, "eager", cudnn=False)
        for name, cudnn in (("sdpa", False), ("sdpa with cuDNN", True)):
            got = gradients(sizes, directory, columns, "sdpa", cudnn=cudnn)
            off = ((got - expected).norm() / expected.norm()).item()
            found[f"{columns} columns, {name}"] = {"finite": bool(got.isfinite().all()), "off": off}
    return found


def gradients(sizes: Sizes, directory: Path, columns: int, kernel: str, *, cudnn: bool) -> torch.Tensor:
    """Of three rows: a full one, one that is half padding, one that is all padding."""
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    model = sizes.base(directory / "attention", 2, attn_implementation=kernel)
    draw = torch.Generator().manual_seed(1)
    embedded_BLD = torch.randn(3, columns, sizes.width, generator=draw).to(device(), torch.bfloat16).requires_grad_()
    starts_B = torch.tensor([0, columns // 2, columns])
    mask_BL = (torch.arange(columns) >= starts_B[:, None]).to(device())
    logits = model(inputs_embeds=embedded_BLD, attention_mask=mask_BL.long()).logits
    (logits.float() * mask_BL[..., None]).square().mean().backward()
    torch.backends.cuda.enable_cudnn_sdp(False)
    assert embedded_BLD.grad is not None
    return embedded_BLD.grad[:2].float()


def first_step(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Loss, gradients and places of one micro-batch."""
    losses = {}
    for where, dtype in ((torch.device("cpu"), "float32"), (device(), "bfloat16")):
        config = sizes.config(directory, sizes.layers, dtype=dtype)
        model = whole(config, where)
        batch = sizes.batch(config, rows=2).to(where)
        loss = model(batch, with_loss=True)
        loss.backward()
        losses[f"loss_{dtype}"] = loss.item()
    read = {name: value for name, value in vars(batch).items() if name != "known_ids"}  # which stay on the host
    tensors = [*model.parameters(), *model.buffers(), *(v for v in read.values() if isinstance(v, torch.Tensor))]
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    missing = sum(grad is None for grad in grads)
    finite = all(bool(grad.isfinite().all()) for grad in grads if grad is not None)
    places = sorted({str(tensor.device) for tensor in tensors})
    return losses | {"devices": places, "finite_gradients": finite, "parameters_without": missing}


def hooks(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """A step under ZeRO-3, and where Python's time goes in it."""
    join_process_group()
    return stepped(sizes, sizes.config(directory, sizes.layers), engine=True)


def without_engine(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """The same step of the whole model."""
    return stepped(sizes, sizes.config(directory, sizes.layers), engine=False)


def stepped(sizes: Sizes, config: Config, *, engine: bool) -> dict[str, Any]:
    """Seconds of a step, of the device's work in it, and DeepSpeed's share of Python's."""
    training = Training("flare", config, engine=engine)
    if not engine:
        training.root.to(device())
    batch = sizes.batch(config).to(device())
    for _ in range(WARM_UP):
        training.step(batch)
    seconds = timed(lambda: training.step(batch))
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu()
    with torch.profiler.profile(activities=activities) as profile:
        training.step(batch)
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    python = cProfile.Profile()
    python.runcall(training.step, batch)
    times = [(file, own) for (file, _, _), (_, _, own, *_) in pstats.Stats(python).stats.items()]  # type: ignore[attr-defined]
    of_deepspeed = sum(own for file, own in times if "deepspeed" in file) / sum(own for _, own in times)
    return {"seconds": seconds, "device_seconds": busy, "deepspeed_share_of_python": of_deepspeed}


def memory(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Peaks of forward and backward."""
    config, found = sizes.config(directory, sizes.layers), {}
    estimate = estimate_memory(config, load_shape(config.model), streams=2, ranks=1)
    for tokens in sizes.tokens:
        model, batch = whole(config, device()), sizes.batch(config, rows=max(1, tokens // sizes.length)).to(device())
        with device_peak() as peak:
            with saved_bytes(model.parameters()) as kept:
                loss = model(batch, with_loss=True)
            loss.backward()
        padded = batch.input_ids.numel()
        estimated = {"estimate_bytes": round(estimate.bytes(padded))}
        found[f"{tokens} target tokens"] = {"peak_bytes": peak["peak_bytes"]} | kept | estimated
        del model, loss
    return found


def quantized(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Losses of one micro-batch on bases stored otherwise."""
    losses, config = {}, sizes.config(directory, sizes.layers)
    for stored in ("none", "nf4", "int8"):
        changed = config.model_copy(update={"model": config.model.model_copy(update={"quantization": stored})})
        model = whole(changed, device())
        loss = model(sizes.batch(config).to(device()), with_loss=True)
        loss.backward()
        losses[stored] = loss.item()
    return losses


def resume(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Four steps at once, and with a stop behind the second."""
    write_base(directory / "base", layers=2, width=64)
    losses = {}
    for name in ("through", "stopped"):
        make_room()
        settings: dict[str, Any] = {"steps": 4, "validate_every": 4, "objective": "labels"}
        config = pairs_config(
            directory, method="flare", data_dir="60", batch=4, task={"validation_rows": 4, "test_rows": 4}, **settings
        )
        config = config.model_copy(update={"run_dir": str(directory / name)})
        cache = open_cache(prepare_cache(config, word_tokenizer(), workers=1))
        if name == "stopped":
            with stopping_at(2), told_to_stop():
                train_together([(config, cache)], evaluate=False)
            make_room()
        train_together([(config, cache)], evaluate=False)
        lines = map(json.loads, (directory / name / "train_log.jsonl").read_text().splitlines())
        losses[name] = [line["loss"] for line in lines if "step_seconds" in line]
    return losses | {"same": losses["through"] == losses["stopped"]}


def two_gpus(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """What gather_volume.py says."""
    if torch.cuda.device_count() < 2:
        return {"not_run": "there are no two GPUs"}
    command = [sys.executable, str(Path(__file__).with_name("gather_volume.py"))]
    on_gpus = {**os.environ, "DS_ACCELERATOR": "cuda"}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=on_gpus).stdout)


def speed(sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Of lora and flare."""
    found = {}
    for method in ("lora", "flare"):
        config = sizes.config(directory, sizes.all_layers, method=method)
        shape = load_shape(config.model)
        estimate = estimate_memory(config, shape, streams=1 + config.sources, ranks=1)
        training, batch = Training(method, config, engine=False), sizes.batch(config).to(device())
        training.root.to(device())
        training.step(batch)
        with device_peak() as peak:
            seconds = timed(partial(training.step, batch))
        tokens = sizes.rows * batch.input_ids.shape[1]  # of the target
        flops = Costs(config, shape, labels=3).of(batch)["flops"]
        found[method] = {
            "seconds": seconds,
            "target_tokens_per_second": tokens / seconds,
            "tflops_4n": flops / seconds / 1e12,  # as TensorBoard shows them
            "peak_bytes": peak["peak_bytes"],
            "estimate_bytes": round(estimate.bytes(batch.input_ids.numel())),
        }
        del training
        gc.collect()
    return found


PARTS: dict[str, Callable[[Sizes, Path], dict[str, Any]]] = {
    "attention": attention,
    "first_step": first_step,
    "hooks": hooks,
    "whole": without_engine,
    "memory": memory,
    "quantized": quantized,
    "resume": resume,
    "two_gpus": two_gpus,
    "speed": speed,
}


def answer(part: str, sizes: Sizes, directory: Path) -> dict[str, Any]:
    """What a part found, or how it failed, and how long it took; told on standard error as well, lest it be lost."""
    began = time.perf_counter()
    if began - BEGAN > LAST_BEGINS_S:
        return {"not_run": f"more than {LAST_BEGINS_S} s were gone"}
    try:
        found = PARTS[part](sizes, directory)
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:500]}
    make_room()
    found |= {"part_seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps({part: found}), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Ask all parts, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, on a CPU too")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    given = parser.parse_args()
    sizes = Sizes(given.tiny)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out, tempfile.TemporaryDirectory() as directory:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # DeepSpeed logs to standard output, too
        found = {part: answer(part, sizes, Path(directory)) for part in given.parts}
        name = torch.cuda.get_device_name() if on_gpu() else "none: nothing here is about GPUs"
        print(json.dumps({"gpu": name, "torch": torch.__version__, "tiny": given.tiny, **found}, indent=2), file=out)


if __name__ == "__main__":
    main()
