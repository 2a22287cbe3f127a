"""Rows on disk, where there is no room for them."""

import resource
import subprocess
import sys

from tests.toy import REPOSITORY

FULL = """
import resource, signal
from flare_ds.data.row_file import RowFile
from flare_ds.exceptions import HostError
from flare_ds.tasks.base import Row
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    rows = (Row(str(n), {"text": "word " * 100}, 0) for n in range({rows}))
    RowFile(rows, name="rows", split_fields=("text",), long_field="text")
except HostError as error:
    print(error)
"""


def test_no_room_for_temporary_files_is_told_with_the_setting() -> None:
    assert resource.RLIM_INFINITY  # the limit stands in for a full disk
    for rows in (9, 500):  # met when the last rows are written out, and before
        command = [sys.executable, "-c", FULL.replace("{rows}", str(rows))]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert "cannot write" in done.stdout and "set TMPDIR" in done.stdout, done.stdout + done.stderr
