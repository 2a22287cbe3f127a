#!/usr/bin/env bash
# Check everything: ruff, its formatting, mypy, the documentation, shellcheck (if it is installed), then the whole test
# suite. Fails when any of them does.
#
#   ./launchers/test.sh [pytest arguments]     e.g. ./launchers/test.sh tests/data -k cache
#   ./launchers/test.sh --fast                 without the tests that start processes: 5 to 8 minutes
#   ./launchers/test.sh --full                 processes killed at 20 moments, not 3; 60 faults of ranks, not 11
#   ./launchers/test.sh --help                 this text
#
# It needs Python 3.11+, a C++ compiler and 6 GB of disk, and installs the rest, pinned, into .venv (or $FLARE_DS_VENV;
# the one quickstart.sh uses). PYTHON names the Python to make it with. The tests run on the CPU, two files at a time,
# ranks with one thread each.
set -euo pipefail
# shellcheck source=common.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/common.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    usage "$0"
    exit
fi
cd "$root"
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
check_compiler
stage "install" install quickstart dev
stage "ruff check" ruff check .
stage "ruff format" ruff format --check .
stage "mypy" mypy
stage "documentation" mkdocs build --strict --quiet
if command -v shellcheck >/dev/null; then
    stage "shellcheck" shellcheck launchers/*.sh launchers/slurm.sbatch benchmarks/gpu.sh .ci/run
else
    say "== shellcheck: skipped, it is not installed"
fi
# In the order of tests/conftest.py: xdist's own puts files of few tests last, which are the long ones.
stage "pytest" python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
say "total: $SECONDS s"
