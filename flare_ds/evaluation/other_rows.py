"""Rows that a run is scored on beside its own test split: another split, another language, a file of labelled rows.

    --split validation                       metrics-validation.json   predictions-validation.parquet
    --language es                            metrics-es.json           predictions-es.parquet
    --language es --split validation         metrics-es-validation.json ...
    --file new.csv [--language es]           metrics-file-new.json ... (metrics-es-file-new.json ...)

What is written stands beside the run's own result, whose names have nothing behind `metrics` and `predictions`. Files
of one name and other contents have one place, which the first of them keeps.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from flare_ds.checksums import file_sha256
from flare_ds.config import Config
from flare_ds.exceptions import ConfigError
from flare_ds.json_text import parse_object
from flare_ds.runs.directory import METRICS
from flare_ds.settings import parse_config
from flare_ds.tasks.base import Split


@dataclass(frozen=True)
class OtherRows:
    """Which rows.

    Attributes:
        split: of the run's data; None: test.
        language: the target language in place of the run's; None: the run's.
        file: labelled rows in place of a split.
    """

    split: Split | None = None
    language: str | None = None
    file: Path | None = None

    def __bool__(self) -> bool:
        """Whether any other rows than the run's own are meant."""
        return any((self.split, self.language, self.file))

    @property
    def name(self) -> str:
        """What they are called in the names of files."""
        parts = (self.language, self.split, self.file and f"file-{self.file.stem}")
        return re.sub(r"[^\w.-]", "_", "-".join(part for part in parts if part))

    @property
    def split_name(self) -> Split:
        """Where they are in their cache: a file's rows stand for a test split."""
        return self.split or "test"

    def beside(self, path: Path) -> Path:
        """A name for their result beside the run's own: metrics-es.json; of the run's own rows that itself."""
        return path.with_name(f"{path.stem}-{self.name}{path.suffix}") if self else path

    def check_place(self, run_dir: Path) -> None:
        """Refuse to write over the result of a file with other contents and the same name.

        Raises:
            ConfigError: there is one.
        """
        place = self.beside(run_dir / METRICS)
        try:
            scored = parse_object(place.read_bytes())
        except (OSError, ValueError):
            return  # there is none, or nothing that could be lost
        if self.file and scored.get("file_sha256") not in (None, file_sha256(self.file)):
            raise ConfigError(
                f"{place} is the result of {scored.get('file')}, whose contents are not those of {self.file}",
                fix=f"give the file another name, or delete {place.name}",
            )

    def settings(self, config: Config) -> Config:
        """The run's settings, with the language of these rows.

        Raises:
            ConfigError: the run's method cannot read that language; or see `parse_config`.
        """
        if self.language in (None, config.task.target_language):
            return config
        settings = config.model_dump(mode="json")
        settings["task"]["target_language"] = self.language
        settings["source"]["mt_language"] = None  # follows from the language
        return parse_config(settings, origin=f"--language {self.language}")


OWN = OtherRows()
"""The run's own test split."""
