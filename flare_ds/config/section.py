"""What all sections of a config share: unknown keys are refused, values never change."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
