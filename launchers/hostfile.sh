#!/usr/bin/env bash
# Start a command on every host of a hostfile, with DeepSpeed's own launcher.
#
#   ./launchers/hostfile.sh HOSTFILE [deepspeed options --] VERB CONFIG [key=value ...]
#
#   ./launchers/hostfile.sh hosts train run.yaml train.steps=500
#   ./launchers/hostfile.sh hosts --include node2:0,1 -- train run.yaml
#   ./launchers/hostfile.sh hosts --no_ssh --node_rank 1 --master_addr node1 -- train run.yaml     (on each host, no ssh)
#
# HOSTFILE has one host a line, with the number of its GPUs (or CPU ranks): "node1 slots=8". Several hosts are reached
# by pdsh over passwordless ssh; the clone and the environment have the same paths on all of them. Environment variables
# that the other hosts need (DS_ACCELERATOR=cpu, NCCL_*) go into a file .deepspeed_env here, one NAME=value a line.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    usage "$0"
    exit
fi
(($# >= 2)) || die "a hostfile and a command are needed" "see $0 --help"
hostfile="$1"
shift
[[ -f "$hostfile" ]] || die "no such file: $hostfile" "write it, one host a line: node1 slots=8"

options=()
for argument in "$@"; do
    if [[ "$argument" == -- ]]; then
        while [[ "$1" != -- ]]; do options+=("$1") && shift; done
        shift
        break
    fi
done
[[ "${1:-}" =~ ^[a-z] ]] || die "expected a verb, e.g. train, and found ${1:-nothing}" "see $0 --help"

hosts=()
number=0
while IFS= read -r line || [[ -n "$line" ]]; do
    number=$((number + 1))
    [[ "$line" =~ ^[[:space:]]*(#|$) ]] && continue
    [[ "$line" =~ ^[[:space:]]*([^[:space:]#]+)[[:space:]]+slots=[1-9][0-9]*[[:space:]]*(#.*)?$ ]] ||
        die "$hostfile line $number: $line" "write a host and its slots, e.g. node1 slots=8"
    hosts+=("${BASH_REMATCH[1]}")
done <"$hostfile"
((${#hosts[@]} > 0)) || die "$hostfile names no host" "write one host a line: node1 slots=8"

use_installed deepspeed
use_accelerator
if [[ "${hosts[*]}" == localhost && "${#options[@]}" -eq 0 ]]; then
    options=(--no_ssh --node_rank 0 --master_addr 127.0.0.1) # this very machine: nothing to reach by ssh
elif [[ " ${options[*]-} " != *" --no_ssh "* && " ${options[*]-} " != *" --launcher"* ]] && ! command -v pdsh >/dev/null; then
    die "pdsh is not installed, which DeepSpeed starts the other hosts with" \
        "install pdsh, or add --no_ssh --node_rank N --master_addr HOST -- and run this on each host; on SLURM use slurm.sbatch"
fi
exec deepspeed --hostfile "$hostfile" "${options[@]}" --module flare_ds "$@"
