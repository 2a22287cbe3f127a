"""A rank that runs a benchmark's script: python -m tests.benchmark_worker SCRIPT ARGUMENTS..."""

import runpy
import sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
