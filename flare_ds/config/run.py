"""A whole run, and which of its settings go together."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from flare_ds.config.adapter import AdapterConfig, MixupConfig, SourceConfig
from flare_ds.config.data import ModelConfig, TaskConfig, TranslateConfig
from flare_ds.config.section import Section, TypedPath, validated
from flare_ds.config.training import EvaluateConfig, GenerateConfig, TrackingConfig, TrainConfig
from flare_ds.methods import METHODS, SOURCE_ALONE, Method
from flare_ds.shipped import AUTO, is_name, shipped_file
from flare_ds.yaml_file import dump_yaml

_HOUSEKEEPING: Any = {
    "run_dir": True,
    "cache_dir": True,
    "tracking": True,
    "source": {"max_store_gb"},
    "train": {
        "micro_batch_size",
        "micro_batch_tokens",
        "whole_model",
        "gradient_checkpointing",
        "save_every",
        "save_seconds",
    },
    "evaluate": {"batch_size", "batch_tokens", "whole_model"},
}
"""Where things lie, and how much is held at once."""


class Config(Section):
    """Everything one run needs; saved, resolved, as `config.yaml` in its run directory."""

    method: str = Field(description=f"one of {', '.join(METHODS)}")
    run_dir: TypedPath = Field(description="where the run writes")
    cache_dir: TypedPath = Field("tokenized_cache", description="where token caches live")
    deepspeed: TypedPath = Field(AUTO, description="DeepSpeed settings: auto, a name in ds_configs/, or a path")
    model: ModelConfig
    task: TaskConfig
    translate: TranslateConfig = TranslateConfig()
    source: SourceConfig = SourceConfig()
    adapter: AdapterConfig = AdapterConfig()
    mixup: MixupConfig = MixupConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _fuse_what_is_as_wide(cls, values: Any) -> Any:
        """An MT encoder gives all modules one state as wide as the model, which down_proj does not take."""
        match values:
            case {"method": str(name)} if name in METHODS and METHODS.get(name).states == "mt_encoder":
                adapter = values.get("adapter", {})
                if isinstance(adapter, dict):
                    return values | {"adapter": {"fused_modules": ["q_proj", "v_proj"], **adapter}}
        return values

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        validated(METHODS.get, name)
        return name

    @field_validator("deepspeed")
    @classmethod
    def _shipped(cls, deepspeed: str) -> str:
        if is_name(deepspeed) and deepspeed != AUTO:
            validated(shipped_file, deepspeed)
        return deepspeed

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Config":
        told = [f"{problem}; {fix}" for broken, problem, fix in self._conflicts() if broken]
        if told:
            raise ValueError(*told)
        return self

    def _conflicts(self) -> list[tuple[bool, str, str]]:
        """Combinations that mean nothing: whether present, what is wrong, what to do."""
        source, adapter, task, stored = self.source, self.adapter, self.task, self.stores_states
        storing = f"method={self.method}"
        if not self.reads_mt_encoder:
            storing += f" with source.provider={source.provider!r}"
        return [
            (
                self.needs_source and not self.has_source,
                f"task.target_language={task.target_language!r} equals task.source_language, but {self._reader} "
                "reads two languages",
                "use method=lora without evaluate.late for stage 1, or another target language",
            ),
            (
                self.late is not None and self.recipe.reads == "source",
                f"evaluate.late={self.late} adds the source's label scores, but method={self.method} has no others",
                "leave evaluate.late out, or use a method that reads the target",
            ),
            (
                self.late == "fitted" and not self.recipe.trains,
                f"evaluate.late='fitted' is fitted while a run trains, but method={self.method} does not",
                "give the weight, e.g. evaluate.late=1",
            ),
            (
                self.late is not None and self.recipe.trains and adapter.train_head,
                f"evaluate.late={self.late} adds the label scores of the frozen base, but adapter.train_head=true "
                "trains its output matrix",
                "use adapter.train_head=false",
            ),
            (
                self.sources > 0 and adapter.fusion == "cross_attention" and adapter.r % adapter.fusion_heads != 0,
                f"adapter.fusion_heads={adapter.fusion_heads} does not divide adapter.r={adapter.r}",
                "choose a divisor of adapter.r",
            ),
            (
                bool(task.extra_source_languages) and len(set(task.languages)) < len(task.languages),
                f"task.extra_source_languages={list(task.extra_source_languages)} repeats a language of the run",
                "name each source language once, and not the target language",
            ),
            (
                stored and bool(task.extra_source_languages),
                f"{storing} reads one source, but task.extra_source_languages is set",
                "use source.provider=lockstep (method=flare or source_prefix), or leave them out",
            ),
            (
                stored and self.fuses_answers,
                f"{storing} stores prompts only, but adapter.span='full' fuses answers",
                "use adapter.span=prompt, or method=flare with source.provider=lockstep",
            ),
            (
                stored and self.sources > 0 and self.pairing == "module",
                "source.provider='cached' stores one state a layer, but adapter.pairing='module' needs one a module",
                "use adapter.pairing=input (equal to module for q, k and v) adapter.fused_modules=[q_proj,v_proj], "
                "or source.provider=lockstep",
            ),
            (
                self.recipe.fuses == "keys" and self.model.attention == "flash_attention_2",
                f"method={self.method} masks what stands before the target, which model.attention='flash_attention_2' "
                "cannot",
                "use model.attention=sdpa",
            ),
            (
                self.reads_mt_encoder and not source.mt_encoder,
                f"method={self.method} needs source.mt_encoder",
                "add it, e.g. source.mt_encoder=facebook/nllb-200-distilled-600M",
            ),
        ]

    def having(self, section: str, **values: Any) -> "Config":
        """These settings with others in one section; what follows from them is not asked again."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    @property
    def recipe(self) -> Method:
        """What the run's method is made of."""
        return METHODS.get(self.method)

    @property
    def late(self) -> float | Literal["fitted"] | None:
        """Weight of the frozen base's label scores of the source, added to the row's own; None: none are."""
        return 1.0 if self.evaluate.late is None and self.recipe.late else self.evaluate.late

    @property
    def of_source(self) -> "Config":
        """The settings of who gives the source those scores."""
        return self.model_copy(update={"method": SOURCE_ALONE})

    @property
    def readings(self) -> tuple["Config", ...]:
        """The settings of all by whom the rows that are scored are read."""
        return (self,) if self.late is None else (self, self.of_source)

    @property
    def needs_source(self) -> bool:
        """Whether a row must have a text in another language than the target's."""
        return self.recipe.needs_source or self.late is not None

    @property
    def _reader(self) -> str:
        return f"method={self.method}" if self.recipe.needs_source else f"evaluate.late={self.late}"

    @property
    def sources(self) -> int:
        """How many sources meet the target in the bottleneck."""
        if self.recipe.fuses != "bottleneck":
            return 0
        return len(self.task.source_languages) if self.recipe.states == "source" else 1

    @property
    def sources_read(self) -> tuple[str, ...]:
        """The languages of the source texts that the method reads; none where it reads the target only."""
        return self.task.source_languages[: max(1, self.sources, self.streams_beside)] if self.needs_source else ()

    @property
    def answers_source(self) -> bool:
        """Whether the source's text is answered, not the target's."""
        return self.recipe.reads == "source"

    @property
    def answer_language(self) -> str:
        """The language of the text that is answered, and so of the label words and of free answers."""
        return self.task.source_language if self.answers_source else self.task.target_language

    @property
    def fuses_answers(self) -> bool:
        """Whether answers meet their sources', so that these follow the sources' prompts."""
        return self.sources > 0 and self.adapter.span == "full"

    @property
    def streams_beside(self) -> int:
        """How many source streams run beside the row through the model."""
        if self.recipe.fuses == "mixup":
            return 1
        if self.stores_states:
            return 0
        return len(self.task.source_languages) if self.recipe.fuses == "keys" else self.sources

    @property
    def stores_states(self) -> bool:
        """Whether what the row meets of its source is computed once and kept."""
        meets = self.sources > 0 or self.recipe.fuses == "keys"
        return meets and (self.source.provider == "cached" or self.reads_mt_encoder)

    @property
    def reads_mt_encoder(self) -> bool:
        """Whether the source states come from an MT encoder that reads the target text."""
        return self.recipe.states == "mt_encoder"

    @property
    def pairing(self) -> str:
        """Which source state a fused module meets; the one of an MT encoder stands where a layer's input would."""
        return "input" if self.reads_mt_encoder else self.adapter.pairing

    @property
    def norms_source(self) -> bool:
        """Whether the source goes through a layer's input norm before it meets the target."""
        fuses_layer_states = self.sources > 0 and self.pairing != "module" and not self.reads_mt_encoder
        return fuses_layer_states and self.adapter.source_norm

    @property
    def caches_mt(self) -> bool:
        """Whether the cache holds what an MT encoder reads: where one is named, so that all methods share a cache."""
        return self.source.mt_encoder is not None and (self.has_source or self.reads_mt_encoder)

    @property
    def has_source(self) -> bool:
        """Whether the cache holds a source stream: only when the two languages differ."""
        return self.task.source_language != self.task.target_language

    def deciding(self) -> dict[str, Any]:
        """The settings by section, without those that change no result by more than rounding."""
        return self.model_dump(mode="json", exclude=_HOUSEKEEPING)

    def to_yaml(self) -> str:
        """The resolved config, as it is saved with the run."""
        return dump_yaml(self.model_dump(mode="json"))
