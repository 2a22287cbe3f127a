"""Translates random rows through the stand-in for apertium: DIRECTORY WORKERS ROWS. A process that tests kill."""

import sys
from pathlib import Path

from flare_ds.translation.run import translate_jobs
from tests.translation.rows import job, random_rows, settings

if __name__ == "__main__":
    directory, workers, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(*translate_jobs([job(random_rows(rows))], settings(directory), workers=workers))
