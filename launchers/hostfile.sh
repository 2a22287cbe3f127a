#!/usr/bin/env bash
# Start a command on every host of a hostfile, with DeepSpeed's own launcher.
#
#   ./launchers/hostfile.sh HOSTFILE [deepspeed options --] VERB CONFIG [key=value ...]
#
#   ./launchers/hostfile.sh hosts train run.yaml train.steps=500
#   ./launchers/hostfile.sh hosts --include node2:0,1 -- train run.yaml
#   ./launchers/hostfile.sh hosts --no_ssh --node_rank 1 --master_addr node1 -- train run.yaml     (on each host, no ssh)
#
# HOSTFILE has one host a line, with the number of its GPUs (or CPU ranks): "node1 slots=8". Several hosts are reached by
# pdsh over passwordless ssh; the clone and the environment have the same paths on all of them. It trains on GPUs;
# DS_ACCELERATOR=cpu says that CPUs are meant. MASTER_PORT is the port of rank 0 (default: 29500). The other hosts are
# told the Python in use, DS_ACCELERATOR, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, FLARE_DS_HOME, FLARE_DS_SETUP_SECONDS,
# FLARE_DS_STEP_SECONDS, DEEPSPEED_TIMEOUT, OMP_NUM_THREADS (default: this host's cores over the most slots),
# TORCH_EXTENSIONS_DIR, PYTORCH_CUDA_ALLOC_CONF, PYTORCH_ALLOC_CONF, GLOO_SOCKET_IFNAME, WANDB_MODE, and by DeepSpeed
# NCCL_* and MLFLOW_*. More variables go into a file .deepspeed_env here, one NAME=value a line. Not told are HF_TOKEN,
# WANDB_API_KEY and MLFLOW_TRACKING_TOKEN, _USERNAME and _PASSWORD, which others would see in a list of processes, as
# they see what .deepspeed_env says: `hf auth login`, `wandb login` and ~/.mlflow/credentials keep them in files.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/common.sh"

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
slots=1
while IFS= read -r line || [[ -n "$line" ]]; do
    number=$((number + 1))
    [[ "$line" =~ ^[[:space:]]*(#|$) ]] && continue
    [[ "$line" =~ ^[[:space:]]*([^[:space:]#]+)[[:space:]]+slots=([1-9][0-9]*)[[:space:]]*(#.*)?$ ]] ||
        die "$hostfile line $number: $line" "write a host and its slots, e.g. node1 slots=8"
    hosts+=("${BASH_REMATCH[1]}")
    slots=$((BASH_REMATCH[2] > slots ? BASH_REMATCH[2] : slots))
done <"$hostfile"
((${#hosts[@]} > 0)) || die "$hostfile names no host" "write one host a line: node1 slots=8"

# is_this_machine HOST
is_this_machine() { [[ " localhost 127.0.0.1 $(uname -n) $(hostname -I 2>/dev/null) " == *" $1 "* ]]; }

# told NAME...: NAME=value lines of those that are set, then the user's own, which win.
told() {
    local name file
    for name in "$@"; do
        if [[ -n "${!name:-}" ]]; then printf '%s=%s\n' "$name" "${!name}"; fi
    done
    # shellcheck disable=SC2016 # each host's own PATH, behind the directory of this Python
    if [[ -n "${python:-}" ]]; then printf 'PATH=%s:$PATH\n' "${python%/*}"; fi
    for file in ~/.deepspeed_env .deepspeed_env; do
        if [[ -f "$file" ]]; then awk 'NF' "$file"; fi
    done
}

# for_remote_shell WORD: pdsh hands words on unquoted, but for those with spaces, which DeepSpeed puts in double quotes.
for_remote_shell() {
    if [[ "$1" == *" "* ]]; then
        printf '%s' "$1" | sed 's/[\\$`]/\\&/g'
    else
        printf '%q' "$1"
    fi
}

# check_path PATH: DeepSpeed writes the paths of the clone and of Python as they are into a line for the other hosts' shells.
check_path() {
    local special=$' \t\n\'"\\$`&;|<>()*?'
    [[ "$1" != *["$special"]* ]] ||
        die "$1 has a character in it that the other hosts' shells would read" \
            "use a path without it, or add --no_ssh --node_rank N --master_addr HOST -- and run this on each host"
}

use_installed deepspeed
here=no
if [[ " ${options[*]-} " == *" --no_ssh "* ]] || { ((${#hosts[@]} == 1)) && is_this_machine "${hosts[0]}"; }; then here=yes; fi
# From a login node, which has no GPU, the hosts train on theirs.
if [[ "$here" == yes ]]; then use_accelerator; else export DS_ACCELERATOR="${DS_ACCELERATOR:-cuda}"; fi
share_cores "$slots"
# What DeepSpeed is given twice it takes as it was given last: the user's own options count.
options=(${MASTER_PORT:+--master_port "$MASTER_PORT"} "${options[@]}")
if [[ "$here" == yes && " ${options[*]-} " != *" --no_ssh "* ]]; then
    options=(--no_ssh --node_rank 0 --master_addr 127.0.0.1 "${options[@]}") # this very machine: nothing to reach by ssh
fi
command=("$@")
if [[ "$here" == no ]]; then
    if [[ " ${options[*]-} " != *" --launcher"* ]]; then
        command -v pdsh >/dev/null ||
            die "pdsh is not installed, which DeepSpeed starts the other hosts with" \
                "install pdsh, or add --no_ssh --node_rank N --master_addr HOST -- and run this on each host; on SLURM use slurm.sbatch"
        check_path "$(pwd -P)"
        check_path "${python:-}"
        for index in "${!command[@]}"; do command[index]="$(for_remote_shell "${command[index]}")"; done
    fi
    options+=(--force_multi) # DeepSpeed takes a single host for this machine
    # DeepSpeed would write every MLFLOW_* onto pdsh's command line, and into its log.
    unset MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
    # DeepSpeed reads what to tell the hosts from a file; one without a name needs no one to remove it.
    file="$(mktemp)"
    told DS_ACCELERATOR HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE FLARE_DS_HOME FLARE_DS_SETUP_SECONDS FLARE_DS_STEP_SECONDS \
        DEEPSPEED_TIMEOUT OMP_NUM_THREADS TORCH_EXTENSIONS_DIR PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF \
        GLOO_SOCKET_IFNAME WANDB_MODE >"$file"
    exec 9<"$file"
    rm "$file"
    export DS_ENV_FILE=/proc/self/fd/9
fi
exec deepspeed --hostfile "$hostfile" "${options[@]}" --module flare_ds "${command[@]}"
