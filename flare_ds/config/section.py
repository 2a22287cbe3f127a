"""What all sections of a config share: unknown keys are refused, values never change; and paths as they are typed."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from flare_ds.exceptions import ConfigError
from flare_ds.paths import expanded

T = TypeVar("T")


class Section(BaseModel):
    """A section of the YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def validated(ask: Callable[[str], T], text: str) -> T:
    """What a question about a value answers; its refusal as the ValueError that pydantic takes."""
    try:
        return ask(text)
    except ConfigError as error:
        raise ValueError(f"{error.problem}; {error.fix}") from None


TypedPath = Annotated[str, AfterValidator(partial(validated, expanded))]
"""A path in which `~` and `$VAR` are filled in; a hub name has neither."""
