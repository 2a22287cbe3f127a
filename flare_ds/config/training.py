"""Settings of the optimisation, the scoring and the decoding."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from flare_ds.config.section import Section


class TrainConfig(Section):
    """The optimisation."""

    steps: int | None = Field(None, ge=1, description="optimizer steps")
    epochs: float | None = Field(None, gt=0, description="passes over the training rows, instead of train.steps")
    batch_size: int = Field(16, ge=1, description="examples per optimizer step, over all ranks")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens per step, over all languages, instead of batch_size; groups similar lengths"
    )
    micro_batch_size: int = Field(8, ge=1, description="maximum examples per forward pass on one rank")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="maximum padded tokens per forward pass, over the streams that run (null: no limit)"
    )
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate")
    learning_rate_ratio: float = Field(1.0, gt=0, description="learning rate of B over that of A (LoRA+)")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay after the warm-up")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps spent warming up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping by global norm")
    whole_model: Literal["auto", True, False] = Field(
        "auto", description="each rank holds the whole base (auto: if there is one rank, or if it fits); else ZeRO-3"
    )
    objective: Literal["labels", "vocabulary"] = Field("labels", description="softmax over label words, or over all")
    gradient_checkpointing: bool = Field(False, description="recompute each layer in the backward pass: less memory")
    source_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of a step's rows that are read without their source"
    )
    seed: int = Field(1, ge=0, description="initialisation, data order and dropout")
    data_seed: int | None = Field(
        None,
        ge=0,
        description="seed of the data order alone; with batch_size it goes by the examples' ids, so that runs of other "
        "seeds and languages share it",
    )
    validate_every: int = Field(20, ge=1, description="steps between validations (best adapter kept)")
    validate_rows: int | None = Field(None, ge=1, description="score only the first N validation rows (null: all)")
    patience: int | None = Field(
        None, ge=1, description="stop after N validations in a row without a better score (null: never)"
    )
    save_every: int = Field(20, ge=1, description="steps between resumable checkpoints")
    save_seconds: float | None = Field(600.0, gt=0, description="maximum seconds between checkpoints (null: no limit)")

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"train.steps={self.steps} and train.epochs={self.epochs}, but exactly one of them says how long a run "
                "trains; give one, and leave the other out or set it to null"
            )
        return self

    @property
    def order_seed(self) -> int:
        """Of the data order; runs that have the same one read the same examples at the same steps."""
        return self.seed if self.data_seed is None else self.data_seed


class EvaluateConfig(Section):
    """The scoring of held-out rows."""

    answers: Literal["ranked", "generated"] = Field(
        "ranked",
        description="label words by their log-likelihood, or by what the model writes (the paper's protocol: with "
        "train.objective: vocabulary, in stage 1 as well, or nothing has taught it to write)",
    )
    late: Annotated[float, Field(gt=0)] | Literal["fitted"] | None = Field(
        None,
        description="weight of the frozen base's label scores given the source text, added to the method's own (null: "
        "1 for method late, else not added; fitted: maximum likelihood on the validation rows)",
    )
    batch_size: PositiveInt | Literal["auto"] = Field(
        "auto", description="maximum examples per forward pass on one rank (auto: by tokens, for speed and free memory)"
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="maximum padded tokens per forward pass, over the streams that run (null: no limit)"
    )
    whole_model: Literal["auto", True, False] = Field(
        "auto", description="each rank holds the whole base (auto: one rank, or if it fits twice); else ZeRO-3"
    )


class GenerateConfig(Section):
    """The decoding of free-text answers."""

    max_new_tokens: int = Field(32, ge=1, description="longest answer")
    temperature: float = Field(0.0, ge=0, description="0: greedy; otherwise tokens are sampled")
    top_k: int = Field(0, ge=0, description="sample among the k best tokens (0: all)")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the best tokens of this total probability")
    seed: int = Field(1, ge=0, description="seed of the sampling")


class TrackingConfig(Section):
    """Where a run can be watched."""

    to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        ("tensorboard",), description="tensorboard, wandb, mlflow, or none of them"
    )
    project: str = Field("flare_ds", min_length=1, description="project of wandb, experiment of mlflow")
