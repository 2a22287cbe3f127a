"""Forms of flare that tests ask for by name, where the defaults will not do."""

from typing import Any

PAPER_FORM: dict[str, Any] = {"pairing": "output", "fused_modules": ["q_proj", "v_proj"], "source_down": "shared"}
"""The paper's; its modules are as wide as the model, so one stored state can meet them all (cached, flare_mt)."""
