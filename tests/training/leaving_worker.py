"""One rank that ends right after a collective: without a clean leave about one in four of these aborts.

Run as `python -m tests.training.leaving_worker`.
"""

import os

import torch
import torch.distributed as dist

from flare_ds.runtime.joining import join_process_group


def main() -> None:
    join_process_group()
    print(f"port {os.environ['MASTER_PORT']}")
    for _ in range(30):
        values = torch.ones(200_000)
        values.known_to_python = True  # so that dropping it needs the interpreter
        dist.all_reduce(values)
        dist.all_gather([torch.empty_like(values) for _ in range(dist.get_world_size())], values)


if __name__ == "__main__":
    main()
