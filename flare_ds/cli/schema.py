"""The settings of a run as a JSON schema, for editors that complete and check YAML."""

from typing import Any

from flare_ds.config.run import Config
from flare_ds.methods import METHODS
from flare_ds.tasks.base import TASKS


def config_schema() -> dict[str, Any]:
    """The schema of a run's YAML; which settings go together it does not say."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A run of flare_ds"
    schema["properties"]["method"]["enum"] = list(METHODS)
    schema["$defs"]["TaskConfig"]["properties"]["name"]["examples"] = list(TASKS)
    return schema
