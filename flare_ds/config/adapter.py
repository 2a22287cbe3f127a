"""Settings of what trains, and of the source it meets."""

from typing import Annotated, Literal

from pydantic import Field

from flare_ds.config.section import Section, TypedPath


class SourceConfig(Section):
    """Where what the target meets of its source comes from (methods flare, source_prefix and flare_mt)."""

    provider: Literal["lockstep", "cached"] = Field(
        "lockstep", description="source states: computed along with the target's, or computed once and stored (cached)"
    )
    mt_encoder: TypedPath | None = Field(None, description="M2M100 or NLLB model: directory or hub name (flare_mt)")
    mt_language: str | None = Field(None, description="the encoder's target language, e.g. pol_Latn (null: NLLB's tag)")
    max_store_gb: float = Field(20.0, gt=0, description="largest store of states on disk (flare_mt, cached)")


class AdapterConfig(Section):
    """The LoRA adapter, and how the source stream is fused into its bottleneck (methods flare and flare_mt).

    Where the defaults are not the paper's form (pairing=output, fused_modules=[q_proj, v_proj], source_down=shared),
    docs/fusion_study.md says why.
    """

    r: int = Field(8, ge=1, description="width of the bottleneck")
    alpha: float = Field(16.0, gt=0, description="adapter output is scaled by alpha / r")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before A, on both streams")
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="linear layers that get an adapter"
    )
    fused_modules: list[str] = Field(
        ["o_proj", "down_proj"], min_length=1, description="target modules that are fused (flare_mt: q_proj and v_proj)"
    )
    fusion: str = Field("add_relu", description="fusion function")
    fusion_heads: int = Field(1, ge=1, description="heads of cross_attention; they divide r")
    pairing: Literal["module", "output", "input"] = Field(
        "module", description="source state that is fused: the same module's input, or its layer's output or input"
    )
    source_norm: bool = Field(True, description="apply the layer's input norm to it (pairing output and input)")
    align: Literal["right", "left", "stretch"] = Field("right", description="which source position meets which target")
    span: Literal["prompt", "full"] = Field("prompt", description="fuse the prompt only, or the answer too")
    source_down: Literal["own", "shared"] = Field(
        "own", description="the source goes through an A of its own, or through the target's"
    )
    source_weights: Literal["mean", "learned"] = Field("mean", description="how several sources are combined")
    train_head: bool = Field(False, description="also train the output matrix (lm_head)")


class MixupConfig(Section):
    """The mixing layer, and what its method adds to the loss (method x_mixup); its rank is adapter.r."""

    layer: int | None = Field(None, ge=1, description="mix after this many decoder layers (null: half of them)")
    heads: int = Field(8, ge=1, description="heads of its attention; they divide the model's width")
    ratio: float = Field(0.5, gt=0, le=1, description="largest share of the source in a mixed state")
    source_weight: float = Field(0.4, ge=0, lt=1, description="share of the source's own answers in the task loss")
    mse_weight: float = Field(1.0, ge=0, description="weight of the distance between the two texts' last states")
    kl_weight: float = Field(1.0, ge=0, description="weight of the divergence between the two texts' predictions")
