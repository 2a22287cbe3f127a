"""What a base can read at all: the tokens its embedding has rows for, and the positions it has places for."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from flare_ds.exceptions import ConfigError
from flare_ds.model_files.hub import revision

_OWN = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "pad_token_id", "cls_token_id")
_MEND = (
    "use the tokenizer that belongs to the base, or enlarge the base's embedding: "
    "model.resize_token_embeddings(len(tokenizer)), then save_pretrained"
)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, *, setting: str) -> None:
    """Check that a model has an embedding for every token a text can become, where its configuration is there.

    Control tokens that no text becomes, such as Gemma 3's for images, may lie behind the embedding's last row. More
    rows than tokens is usual.

    Raises:
        ConfigError: it has not.
    """
    rows = _rows_of(name)
    if rows is None:
        return
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    said = beyond.keys() - (special - {getattr(tokenizer, role, None) for role in _OWN})
    if said:
        first = min(said)
        raise _too_few_rows(f"{setting}={name!r}", f"its tokenizer gives {beyond[first]!r} the id {first}", rows)


def embedding_rows(shape: PreTrainedModel) -> int:
    """How many tokens a base knows."""
    table: Any = shape.get_input_embeddings()
    return table.num_embeddings


def check_ids(largest: int, shape: PreTrainedModel, *, of: str) -> None:
    """Check that the base has an embedding for the largest token id that is to be read.

    Raises:
        ConfigError: it has not.
    """
    rows = embedding_rows(shape)
    if largest >= rows:
        raise _too_few_rows("model.base", f"{of} has the token id {largest}", rows)


def check_positions(shape: PreTrainedModel, longest: int, *, of: str) -> str | None:
    """Check that a row is no longer than the positions that the base has learned or can compute.

    Args:
        shape: the base on the meta device.
        longest: tokens of the longest row.
        of: what is so long.

    Returns:
        A warning, if the base computes positions that it was not trained with; None: all is well.

    Raises:
        ConfigError: the base has no such position.
    """
    text: Any = shape.config.get_text_config()
    fixed = _fixed_angles(text)
    if fixed is not None and longest > fixed:
        follow = (
            f"beyond {fixed} the positions of model.base ({type(shape).__name__}) depend on the longest row of a batch"
        )
        return f"{of} has {longest} tokens, but {follow}: the prediction for a row depends on the others in its batch"
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if positions is None or longest <= positions:
        return None
    problem = f"{of} has {longest} tokens, but model.base ({type(shape).__name__}) has {positions} positions"
    if _computes_positions(shape):
        return f"{problem}: it was not trained on longer rows, so its predictions may be worse"
    raise ConfigError(problem, fix="lower task.max_prompt_tokens (or generate.max_new_tokens), or use another base")


def _fixed_angles(text: Any) -> int | None:
    """Up to which length a row's rotary angles are its own, whatever rows are beside it or came before; None: any."""
    told = getattr(text, "rope_parameters", None) or {}
    kinds = [one for one in (told, *told.values()) if isinstance(one, dict)]  # one, or one a kind of layer
    moving = [one for one in kinds if "dynamic" in (kind := str(one.get("rope_type"))) or kind == "longrope"]
    if not moving:
        return None
    original = "original_max_position_embeddings"
    own = getattr(text, original, None) or text.max_position_embeddings
    return min(int(one.get(original, own)) for one in moving)


def _computes_positions(shape: nn.Module) -> bool:
    """Whether positions are angles or slopes, which any number has; a table ends."""
    slopes = getattr(shape.config.get_text_config(), "alibi", False)  # type: ignore[operator,union-attr]
    return slopes or any("rotary" in type(module).__name__.lower() for module in shape.modules())


def _rows_of(name: str) -> int | None:
    if Path(name).is_file() or (Path(name).is_dir() and not (Path(name) / "config.json").is_file()):
        return None
    try:
        config = AutoConfig.from_pretrained(name, revision=revision(name), trust_remote_code=False)
    except (OSError, ValueError):
        return None  # whoever loads the model says so
    return getattr(config.get_text_config(), "vocab_size", None)


def _too_few_rows(model: str, what: str, rows: int) -> ConfigError:
    return ConfigError(f"{what}, but the embedding of {model} has {rows} rows: ids 0 to {rows - 1}", fix=_MEND)
