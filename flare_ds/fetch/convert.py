"""Turn one GGUF file into a saved Hugging Face directory: bfloat16 safetensors and the tokenizer.

Run as a process of its own (`python -m flare_ds.fetch.convert GGUF DIRECTORY`), so that the several times larger
memory of dequantizing is given back. The weights are stored dequantized: they train like any other checkpoint.
"""

import sys
from pathlib import Path

from flare_ds.exceptions import FetchError
from flare_ds.fetch.child import last_line, run_child


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Convert in a child process.

    Raises:
        FetchError: the file could not be read as a model.
        HostError: not enough memory or disk.
    """
    command = [sys.executable, "-m", "flare_ds.fetch.convert", str(gguf), str(directory)]
    # The conversion must neither ask the hub nor occupy a GPU.
    code, words = run_child(command, {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
    if code != 0:
        problem = f"cannot convert {gguf.name}: {last_line(words)}"
        raise FetchError(problem, fix="install the pinned versions of constraints.txt and run again")


def _convert(gguf: Path, directory: Path) -> None:
    # Imported here: the parent only starts this process and should not wait for torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("reading the tokenizer", flush=True)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    print("reading and dequantizing the weights", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(directory)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
