#!/usr/bin/env bash
# One node's part of slurm.sbatch, started by srun: this node's ranks. Not called by hand.
#
#   launchers/slurm_task.sh VERB CONFIG [key=value ...]
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/common.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    usage "$0"
    exit
fi
[[ -n "${SLURM_NODEID:-}" && -n "${MASTER_ADDR:-}" && -n "${FLARE_DS_CONTINUED:-}" ]] ||
    die "slurm_task.sh was not started by slurm.sbatch" "call sbatch launchers/slurm.sbatch $*"
use_installed python
use_accelerator
ranks="${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
cores="$(available_cores)"
((cores >= ranks)) || say "cores on $(uname -n): $cores, ranks: $ranks; for more cores, sbatch --exclusive or --cpus-per-task=N"
share_cores "$ranks"

# No torchrun between Slurm and the ranks: it would give a rank that is told to end no longer than 30 s to save its state,
# and lose its exit status. Slurm's signals reach the ranks too; this script only waits on.
trap : TERM USR1
export WORLD_SIZE=$((SLURM_JOB_NUM_NODES * ranks)) LOCAL_WORLD_SIZE="$ranks" LOCAL_SIZE="$ranks"
running=()
for ((local = 0; local < ranks; local++)); do
    RANK=$((SLURM_NODEID * ranks + local)) LOCAL_RANK=$local python -u -m flare_ds "$@" &
    running+=($!)
done

# The first status that is not 0 is the task's. The other ranks then have a while to say what they saw.
status=0
patience=30
while ((${#running[@]} > 0 && patience > 0)); do
    sleep 1 || true
    left=()
    for rank in "${running[@]}"; do
        if kill -0 "$rank" 2>/dev/null; then left+=("$rank") && continue; fi
        wait "$rank" || status=$((status == 0 ? $? : status))
    done
    if ((status != 0 && status != to_be_continued)); then patience=$((patience - 1)); fi
    running=("${left[@]}")
done
if ((${#running[@]} > 0)); then kill -KILL "${running[@]}" 2>/dev/null || true; fi
if ((status != to_be_continued)); then exit "$status"; fi
if ((SLURM_NODEID == 0)); then : >"$FLARE_DS_CONTINUED"; fi
