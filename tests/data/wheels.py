"""Small wheels that pip accepts."""

import hashlib
import os
import zipfile
from pathlib import Path

from flare_ds.fetch.download import Package


def make_wheel(index: Path, name: str, members: dict[str, bytes]) -> Package:
    """Write a wheel of version 1.0 that pip accepts, and return its pin."""
    path = index / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    partial = index / f"{os.getpid()}.partial"  # two processes of a test may make the same wheel while pip reads it
    with zipfile.ZipFile(partial, "w") as wheel:
        for member, content in (texts | members).items():
            wheel.writestr(zipfile.ZipInfo(member), content)  # no time stamp: the same file each time
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(path)
    return Package(f"{name}==1.0", path.name, digest)
