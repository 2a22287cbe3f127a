"""Two ranks, of which the second says a great deal before it comes to where the first one waits."""

import os

import torch.distributed as dist

if __name__ == "__main__":
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        print("word " * 250_000, flush=True)
    dist.barrier()
    dist.destroy_process_group()
