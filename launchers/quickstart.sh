#!/usr/bin/env bash
# From a clean clone to a trained and evaluated FLARE adapter, in one command.
#
#   ./launchers/quickstart.sh [options] [key=value ...]
#
#   --model NAME|DIR      gemma3-270m (default), smollm2, or the directory of a saved model
#   --languages L[,L...]  target languages, e.g. pl,es (default: those of the sweep's YAML)
#   --data DIR            directory with the task's files (default: MultiEmo is fetched)
#   --out DIR             where the runs go (default: runs/quickstart-<model>)
#   --config YAML         the sweep (default: launchers/configs/quickstart.yaml)
#   --no-install          use the current python, $PYTHON or python3, as it is
#   --help                this text
#   key=value             settings of the sweep's YAML, e.g. base.train.steps=20
#
# It needs Python 3.11+, a C++ compiler, 12 GB of memory and 6 GB of disk. It makes a virtual environment in .venv
# (or $FLARE_DS_VENV) with the pinned dependencies, fetches a model and data into $FLARE_DS_HOME (default
# ~/.cache/flare_ds), and runs the sweep. What is finished is skipped: call it again after an interruption.
# PYTHON names the Python to make it with; pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/common.sh"

# Told to end, the sweep ends its runs, which save; the same command must not find them at work.
sweep=""
interrupted() {
    trap '' INT TERM
    if [[ -n "$sweep" ]]; then
        kill -TERM "$sweep" 2>/dev/null || true
        wait "$sweep" || true
    fi
    say "interrupted; run the same command again to continue"
    exit 130
}
trap interrupted INT TERM

# behind COMMAND...: run it behind this script, for bash hears no signal while a command in front of it runs.
behind() {
    "$@" &
    sweep=$!
    wait "$sweep"
}

model=gemma3-270m
languages=""
data=""
out=""
config="$root/launchers/configs/quickstart.yaml"
installs=yes
overrides=()

# value OPTION REST...: the option's value, which must follow it.
value() {
    [[ $# -ge 2 && -n "$2" ]] || die "$1 needs a value" "see $0 --help"
    printf '%s' "$2"
}

# quoted TEXT: a YAML string, so that no path or language code (no!) is read as something else.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }

while (($#)); do
    case "$1" in
    --help | -h) usage "$0" && exit ;;
    --no-install) installs=no && shift && continue ;;
    --model) model="$(value "$@")" ;;
    --languages) languages="$(value "$@")" ;;
    --data) data="$(value "$@")" ;;
    --out) out="$(value "$@")" ;;
    --config) config="$(value "$@")" ;;
    -*) die "unknown option $1" "see $0 --help" ;;
    *=*) overrides+=("$1") && shift && continue ;;
    *) die "cannot read the argument $1" "settings are written key=value; see $0 --help" ;;
    esac
    shift 2
done

# Everything below runs in the clone, where the shipped YAMLs' relative paths start.
[[ -f "$config" ]] || die "no such file: --config $config" "check the path, or leave --config out"
config="$(realpath "$config")"
if [[ -n "$data" ]]; then
    [[ -d "$data" ]] || die "no such directory: --data $data" "check the path, or leave --data out to fetch MultiEmo"
    data="$(realpath "$data")"
fi
case "$model" in
gemma3-270m | smollm2) fetched=yes ;;
*)
    fetched=no
    [[ -f "$model/config.json" ]] ||
        die "--model $model is neither gemma3-270m, smollm2 nor a directory with a config.json" "check the name or the path"
    model="$(realpath "$model")"
    ;;
esac
out="$(realpath -m "${out:-$root/runs/quickstart-${model##*/}}")"
if [[ -n "$languages" ]]; then
    [[ "$languages" =~ ^[a-zA-Z_-]+(,[a-zA-Z_-]+)*$ ]] ||
        die "cannot read --languages $languages" "give codes with commas between them, e.g. --languages pl,es"
    separator="','"
    overrides=("grid.languages=['${languages//,/$separator}']" "${overrides[@]}")
fi
cd "$root"

check_compiler
if [[ "$fetched" == yes ]]; then check_memory 12; fi
count_gpus
if [[ -z "${DS_ACCELERATOR:-}" && "$gpus" -eq 0 ]]; then
    say "no GPU is visible: this runs on the CPU"
    export DS_ACCELERATOR=cpu
fi
use_accelerator
if [[ "$installs" == yes ]]; then
    stage "install" install quickstart
else
    check_python "${PYTHON:-python3}"
    use_python "${PYTHON:-python3}"
fi
if ((gpus > 0)); then
    overrides=("ranks=$((gpus < 2 ? gpus : 2))" "${overrides[@]}")
fi

if [[ "$fetched" == yes ]]; then model="$(stage "fetch model $model" "$python" -m flare_ds fetch model "$model")"; fi
if [[ -z "$data" ]]; then data="$(stage "fetch data" "$python" -m flare_ds fetch data multiemo)"; fi
stage "sweep" behind "$python" -m flare_ds sweep "$config" "base.model.base=$(quoted "$model")" \
    "base.task.data_dir=$(quoted "$data")" "out=$(quoted "$out")" "${overrides[@]}"

say "total: $SECONDS s"
say "learning curves: $(command -v tensorboard || printf tensorboard) --logdir $(printf '%q' "$out")"
