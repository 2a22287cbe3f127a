"""docs/troubleshooting.md: what it quotes as ours, we print."""

import ast
import re

from tests.toy import REPOSITORY

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
OTHERS = ("command not found", "TypeError", "CheckpointError", "Invalidate trace cache", "deepspeed")
"""Beginnings and ends of symptoms that a shell, DeepSpeed or torch prints."""


def printed() -> list[str]:
    """Every text of the sources, its inserted values as `...`; and the launchers, which print lines of their own."""
    found = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "launchers").glob("*.sh")]
    for path in (REPOSITORY / "flare_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_each_quoted_message_is_in_the_sources() -> None:
    texts = printed()
    symptoms = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    quoted = [text for symptom in symptoms for text in re.findall("`([^`]+)`", symptom) if " " in text]
    ours = [text for text in quoted if not any(text.startswith(other) or text.endswith(other) for other in OTHERS)]
    assert len(ours) > 25
    for text in ours:
        parts = [part for part in text.split("...") if part.strip()]
        assert any(all(part in one for part in parts) for one in texts), f"nothing prints {text!r}"
