"""What all sections of a config share: unknown keys are refused, values never change; and paths as they are typed."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from flare_ds.exceptions import ConfigError
from flare_ds.paths import expanded


class Section(BaseModel):
    """A section of the YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _expanded(text: str) -> str:
    try:
        return expanded(text)
    except ConfigError as error:
        raise ValueError(f"{error.problem}; {error.fix}") from None


TypedPath = Annotated[str, AfterValidator(_expanded)]
"""A path in which `~` and `$VAR` are filled in; a hub name has neither."""
