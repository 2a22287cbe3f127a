#!/usr/bin/env bash
# One node's part of slurm.sbatch, started by srun: torchrun with this node's ranks. Not called by hand.
#
#   launchers/slurm_task.sh VERB CONFIG [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    usage "$0"
    exit
fi
[[ -n "${SLURM_NODEID:-}" && -n "${MASTER_ADDR:-}" ]] ||
    die "slurm_task.sh was not started by slurm.sbatch" "call sbatch launchers/slurm.sbatch $*"
use_installed torchrun
use_accelerator
ranks="${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
exec torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$ranks" --node-rank="$SLURM_NODEID" \
    --rdzv-backend=static --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" -m flare_ds "$@"
