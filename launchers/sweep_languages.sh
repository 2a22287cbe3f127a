#!/usr/bin/env bash
# A grid of languages x methods x seeds from one YAML: each cell in its own directory, the table at the end.
#
#   launchers/sweep_languages.sh SWEEP.yaml [key=value ...]
#
#   SWEEP.yaml   e.g. launchers/configs/sweep_languages.yaml
#   key=value    settings laid over it, e.g. grid.languages='[pl, es]' base.train.steps=60
#
# It trains on GPUs; DS_ACCELERATOR=cpu says that CPUs are meant. The YAML says how many ranks.
#
# Relative paths inside the YAML and in settings start at the clone. What is finished is skipped: call it again after
# an interruption, or with more languages.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/common.sh"

case "${1:-}" in
--help | -h) usage "$0" && exit ;;
"" | -* | *=*) die "no sweep is named" "see $0 --help" ;;
esac
# From where we were called or, like the one above, from the clone.
if [[ -f "$1" ]]; then config="$(realpath "$1")"; else config="$root/$1"; fi
[[ -f "$config" ]] || die "no such file: $1" "check the path"
shift
use_installed flare-ds
use_accelerator
cd "$root"
exec flare-ds sweep "$config" "$@"
