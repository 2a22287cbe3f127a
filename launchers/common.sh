# shellcheck shell=bash
# Sourced by the other launchers, never run: messages, checks of this machine, the virtual environment.
# Needs bash 4.4 and coreutils. Every problem ends in die(): one message, one fix.

unset CDPATH # with it, cd would print where it goes
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# What this site needs on each host (module load, NCCL_*): the user's own file, and modules that expect no -e and -u.
set +eu
# shellcheck source=/dev/null
if [[ -f "$root/launchers/env.sh" ]]; then source "$root/launchers/env.sh"; fi
set -eu
shopt -s inherit_errexit # in $( ), too, what fails ends the script
venv="${FLARE_DS_VENV:-$root/.venv}"
# shellcheck disable=SC2034
to_be_continued=75 # the exit status of training that was told to end and has saved its state

say() { printf '%s\n' "$*" >&2; }

# die PROBLEM FIX
die() {
    printf 'error: %s\n  fix: %s\n' "$1" "$2" >&2
    exit 1
}

# usage SCRIPT: the comment block below the script's first line, which is its only documentation.
usage() { awk 'NR == 1 || /^#+SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"; }

# stage NAME COMMAND...: run the command and say how long it took.
stage() {
    local name="$1" start="$SECONDS"
    shift
    say "== $name"
    "$@"
    say "== $name: $((SECONDS - start)) s"
}

check_python() { # PYTHON
    command -v "$1" >/dev/null ||
        die "no Python: $1 is not on the PATH" "install Python 3.11 or newer, or name it: PYTHON=/path/to/python3.11 $0"
    local version
    version="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
        die "$1 does not run" "install Python 3.11 or newer, or name it: PYTHON=/path/to/python3.11 $0"
    if [[ "${version%%.*}" -ne 3 || "${version##*.}" -lt 11 ]]; then
        die "$1 is Python $version, but 3.11 or newer is needed" \
            "install Python 3.11 or newer, or name it: PYTHON=/path/to/python3.11 $0"
    fi
    check_headers "$1"
}

check_headers() { # PYTHON
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        die "$1 has no header files (Python.h), which DeepSpeed compiles against" \
            "install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
}

# DeepSpeed compiles its CPU communication at first use, by torch, which takes $CXX or c++. Another name for the compiler
# would compile it again at each change, so CXX is set only where there is no c++.
check_compiler() {
    local compiler
    for compiler in ${CXX:+"$CXX"} c++ g++ clang++; do
        if command -v "$compiler" >/dev/null; then
            if [[ "$compiler" != c++ ]]; then export CXX="$compiler"; fi
            return
        fi
    done
    die "no C++ compiler: none of ${CXX:+\$CXX=$CXX, }c++, g++ and clang++ is on the PATH" \
        "install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or set CXX to yours"
}

# A machine sold as 12 GB shows a little less, so the bar is a tenth lower than the number given.
check_memory() { # GIGABYTES
    local bytes limit=/sys/fs/cgroup/memory.max
    bytes=$(($(getconf _PHYS_PAGES) * $(getconf PAGE_SIZE)))
    if [[ -r "$limit" && "$(<"$limit")" != max && "$(<"$limit")" -lt "$bytes" ]]; then
        bytes="$(<"$limit")"
    fi
    ((bytes >= $1 * 900000000)) ||
        die "this machine has $((bytes / 1000000000)) GB of memory, but $1 GB are needed" \
            "use a machine (or a container limit) with more memory, or train your own smaller model: --model DIR"
}

check_disk() { # DIRECTORY GIGABYTES
    mkdir -p "$1"
    local kilobytes
    kilobytes="$(df -Pk "$1" | awk 'NR == 2 { print $4 }')"
    ((kilobytes >= $2 * 1000000)) ||
        die "$1 has $((kilobytes / 1000000)) GB of free disk, but $2 GB are needed" \
            "free some space, or point FLARE_DS_VENV and FLARE_DS_HOME at a larger disk"
}

# listed_devices LIST: how many GPUs a *_VISIBLE_DEVICES names: numbers, or names of GPUs and of MIG's parts. -1 ends it.
listed_devices() {
    local device count=0
    for device in ${1//,/ }; do
        if [[ "$device" == -* || "$device" == NoDevFiles ]]; then break; fi
        count=$((count + 1))
    done
    printf '%s' "$count"
}

# The GPUs that this job has on this host: Slurm's word, then what is visible, then all.
count_gpus() {
    local name
    gpus="${SLURM_GPUS_ON_NODE:-}"
    for name in CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES; do
        if [[ -z "$gpus" && -n "${!name+set}" ]]; then gpus="$(listed_devices "${!name}")"; fi
    done
    if [[ -z "$gpus" ]]; then gpus="$({ nvidia-smi -L || amd-smi list; } 2>/dev/null | grep -c '^GPU' || true)"; fi
}

# Train on GPUs, or on CPUs where DS_ACCELERATOR says so; never on CPUs because a GPU was not found. It is set here, so
# that no rank, on whatever host, chooses for itself.
use_accelerator() {
    count_gpus
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cuda}"
    if [[ "$DS_ACCELERATOR" == cuda && "$gpus" -eq 0 ]]; then
        die "no GPU is visible on $(uname -n)" "ask for GPUs (sbatch --gpus-per-node=8), or say that CPUs are meant: DS_ACCELERATOR=cpu"
    fi
    if [[ "$DS_ACCELERATOR" == cpu ]]; then gpus=0; fi
    # Rows of many lengths and gathered layers leave holes between fixed segments.
    if ((gpus > 0)) && [[ -z "${PYTORCH_ALLOC_CONF:-}" ]]; then
        export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
    fi
}

# The cores that this process may use; nproc itself would believe OMP_NUM_THREADS.
available_cores() { OMP_NUM_THREADS="" nproc; }

# share_cores RANKS: threads of each of the ranks of this host.
share_cores() {
    local threads=$(($(available_cores) / $1))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
}

# Put a Python's own directory first on the PATH, so that deepspeed, torchrun and ninja are the ones installed with it.
use_python() { # PYTHON
    python="$("$1" -c 'import sys; print(sys.executable)')"
    export PATH="${python%/*}:$PATH"
}

# Use the environment quickstart.sh made, where there is one, with what it compiled; otherwise whatever is active.
use_installed() { # PROGRAM
    if [[ -x "$venv/bin/python" ]]; then
        use_python "$venv/bin/python"
        export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$venv/torch_extensions}"
    fi
    command -v "$1" >/dev/null ||
        die "$1 is not on the PATH" "run ./launchers/quickstart.sh or ./launchers/test.sh once, or activate your environment"
}

# install EXTRA...: make the virtual environment and install the pinned dependencies, once for each content of setup.py
# and constraints.txt, and each Python. The lock is held, by every process started from here too, until the last of them
# ends: a call after kill -9 waits for what the killed one left running instead of writing beside it.
install() {
    lock_clone
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$venv/torch_extensions}"
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then tell_unused_python; else make_venv; fi
    use_python "$venv/bin/python"
    once fresh_extensions rm -rf "$venv/torch_extensions" # torch would load what was compiled for another Python
    local extra
    for extra in "$@"; do
        once "$extra" install_extra "$extra"
    done
    # A process killed while it compiles leaves torch's lock behind, and the next one would wait for it for ever.
    find "$venv/torch_extensions" -name lock -delete 2>/dev/null || true
    if [[ "${DS_ACCELERATOR:-}" == cpu ]]; then once cpu_communication build_cpu_communication; fi
}

# NFS locks what is open for writing alone; Lustre may lock nothing, which ends no installation.
lock_clone() {
    local file="$root/constraints.txt" held=75 status=0 why
    if [[ -w "$file" ]]; then exec 9<>"$file"; else exec 9<"$file"; fi
    why="$(flock --nonblock --conflict-exit-code "$held" 9 2>&1)" || status="$?"
    if ((status == held)); then
        say "an earlier call is still running from this clone: waiting for it to end"
        flock 9
    elif ((status != 0)); then
        say "this clone cannot be locked ($why): start no other call from it meanwhile"
    fi
}

make_venv() {
    local base="${PYTHON:-python3}"
    check_python "$base"
    check_disk "$venv" 6
    "$base" -m venv "$venv" >/dev/null ||
        die "$base cannot make a virtual environment in $venv" \
            "remove $venv if it is damaged, or install the venv module (Debian, Ubuntu: apt install python3-venv)"
}

tell_unused_python() {
    local which='import sys; print(sys.base_prefix, sys.version)'
    if [[ -n "${PYTHON:-}" && "$("$PYTHON" -c "$which" 2>&1)" != "$("$venv/bin/python" -c "$which")" ]]; then
        say "PYTHON=$PYTHON is not used: $venv has a Python already; to change it, remove $venv"
    fi
}

# once NAME COMMAND...: skip the command where its marker says it finished for these very files and this Python.
once() {
    local marker="$venv/finished-$1" compiled_for key
    compiled_for="$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')"
    key="$({ sha256sum "$root/setup.py" "$root/constraints.txt" && printf '%s' "$compiled_for"; } | sha256sum)"
    if [[ -f "$marker" && "$(<"$marker")" == "$key" ]]; then return; fi
    shift
    "$@"
    printf '%s\n' "$key" >"$marker.new"
    mv "$marker.new" "$marker"
}

# torch goes first, alone: DeepSpeed's own setup imports it.
install_extra() { # EXTRA
    pip_install "$(grep '^torch==' "$root/constraints.txt")"
    pip_install -e "${root}[$1]"
}

pip_install() {
    local log="$venv/install.log"
    if ! "$python" -m pip install --progress-bar off -c "$root/constraints.txt" "$@" 2>&1 | tee "$log" |
        awk '/^(Collecting|Installing)/ { print substr($0, 1, 100); fflush() }' >&2; then
        explain_pip_failure "$log"
    fi
}

explain_pip_failure() { # LOG
    local network='Failed to establish|NewConnectionError|NameResolutionError|name resolution|unreachable|Connection(Reset|Refused)?Error|ProxyError|Timeout'
    if grep -q 'No space left' "$1"; then
        die "the disk of $venv is full" "free 6 GB, or point FLARE_DS_VENV at a larger disk, and run the same command again"
    elif grep -qE "$network" "$1"; then
        die "no network: pip cannot reach its package index" \
            "check the connection and pip's settings (HTTPS_PROXY, PIP_INDEX_URL) and run the same command again; it continues"
    fi
    die "pip failed: $(grep -m 1 '^ERROR' "$1" || tail -n 1 "$1")" "read $1, correct that, and run the same command again"
}

build_cpu_communication() {
    say "compiling DeepSpeed's CPU communication"
    check_headers "$python" # the environment may be an old one, or another's
    "$python" -c 'from deepspeed.comm.torch import build_shm_op; build_shm_op()' >"$venv/compile.log" 2>&1 ||
        die "${CXX:-c++} cannot compile DeepSpeed's CPU communication: $(tail -n 1 "$venv/compile.log")" "read $venv/compile.log"
}
