"""The architectures that the tests train, evaluate and decode: as docs/models.md and `flare-ds models` show them."""

from dataclasses import dataclass

from flare_ds.markdown import table

_INWARD = ("q_proj", "v_proj")
_OUTWARD = ("o_proj", "down_proj")
_ONE = ("query_key_value",)
_DENSE = ("dense", "dense_4h_to_h")
_BOTH = ("sdpa", "eager")


@dataclass(frozen=True)
class Checked:
    """One of them.

    Attributes:
        title: what people call it.
        kind: transformers' model_type.
        fused: what `adapter.fused_modules` is for it: the modules whose sums go on to the next layer.
        attentions: what `model.attention` may be.
        reading: the modules that hold W_Q and W_V, which take a state as wide as the model; fused with an MT encoder's.
    """

    title: str
    kind: str
    fused: tuple[str, ...] = _OUTWARD
    attentions: tuple[str, ...] = _BOTH
    reading: tuple[str, ...] = _INWARD


CHECKED = (
    Checked("Llama (and what is built like it)", "llama"),
    Checked("Gemma 2", "gemma2", attentions=("eager",)),
    Checked("Gemma 3", "gemma3_text"),
    Checked("Gemma 3 with images", "gemma3"),
    Checked("Qwen 2", "qwen2"),
    Checked("Qwen 3", "qwen3"),
    Checked("Mistral", "mistral"),
    Checked("Phi-3", "phi3", reading=("qkv_proj",)),
    Checked("OLMo 2", "olmo2"),
    Checked("Granite", "granite"),
    Checked("GPT-NeoX (Pythia)", "gpt_neox", _DENSE, reading=_ONE),
    Checked("Falcon", "falcon", _DENSE, reading=_ONE),
    Checked("Falcon with ALiBi", "falcon", _DENSE, reading=_ONE),
    Checked("BLOOM", "bloom", _DENSE, ("eager",), _ONE),
    Checked("Gemma 4", "gemma4_text"),
    Checked("Gemma 4 with shared keys and values (E2B, E4B)", "gemma4_text"),
    Checked("Qwen 2 MoE", "qwen2_moe"),
    Checked("OPT", "opt", ("out_proj", "fc2")),
)


def checked_table() -> str:
    """The architectures as a table in Markdown."""
    columns = ("architecture", "model_type", "`adapter.fused_modules`", "`model.attention`")
    lines = [(one.title, f"`{one.kind}`", ", ".join(one.fused), ", ".join(one.attentions)) for one in CHECKED]
    return table(columns, lines)
