#!/usr/bin/env bash
# What a GPU must answer first, in under 10 minutes on one card; prints one JSON. See benchmarks/gpu.py.
#
#   benchmarks/gpu.sh [--tiny] [--parts NAME ...]
#
# --tiny runs the same code on the smallest sizes, on a CPU too: whether it runs, and nothing about GPUs.
set -euo pipefail
case " $* " in
*" --tiny "*) ;;
*) command -v nvidia-smi >/dev/null || { printf 'error: no GPU here\n  fix: run it on one, or try it with --tiny\n' >&2 && exit 1; } ;;
esac
exec timeout 600 "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
