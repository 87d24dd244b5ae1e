"""PsalmConfig: every size and weight of the model, and the only place where their defaults are written."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PhiConfig, PreTrainedConfig, SwinConfig

SWIN_STAGES = ["stage1", "stage2", "stage3", "stage4"]
"""What the mask decoder and the projectors read of a Swin: res2, res3, res4, res5."""

SWIN_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
"""Swin-T and Swin-S (pretrained on 224 pixels), Swin-B and Swin-L (384), as published with Mask2Former."""

SWIN_DEFAULTS: dict[str, Any] = {"image_size": 1024, "drop_path_rate": 0.0}
"""What published weights do not show: the side of the padded square that they were trained on, no stochastic depth."""


@strict
class PsalmConfig(PreTrainedConfig):
    """Architecture and losses of PSALM with the deformable projector.

    ``text_config`` (the LLM's, Phi by default) and ``vision_config`` (a ``SwinConfig``) may be given as dictionaries;
    without a ``vision_config`` the published Swin of ``swin_type`` is meant. ``projector_outdim`` follows the LLM's
    width when it is not given, and must equal it when it is.

    Raises:
        ValueError: a width is no multiple of its number of heads, the pixel decoder's width no multiple of 32 (its
            GroupNorm has 32 groups), or ``projector_outdim`` not the LLM's hidden size.
    """

    model_type = "psalm"
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig, "vision_config": SwinConfig}

    text_config: Any = None
    vision_config: Any = None
    swin_type: Literal["tiny", "small", "base", "large"] = "base"

    mm_projector_type: Literal["swin_conv", "deformable"] = "deformable"
    mm_conv_planes: int = 2048
    mm_hidden_dim: int = 256
    mm_n_heads: int = 8
    mm_n_points: int = 4
    mm_reference_points: Literal["auto", "center", "proposal", "learned"] = "auto"
    projector_outdim: int | None = None

    num_queries: int = 100
    conv_dim: int = 256
    mask_dim: int = 256
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 9
    decoder_feedforward_dim: int = 2048

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = PhiConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**{"model_type": PhiConfig.model_type, **self.text_config})
        if self.vision_config is None:
            self.vision_config = {**SWIN_DEFAULTS, **SWIN_SIZES[self.swin_type]}
        if isinstance(self.vision_config, dict):
            self.vision_config = SwinConfig(**{"out_features": SWIN_STAGES, **self.vision_config})
        if self.projector_outdim is None:
            self.projector_outdim = self.text_config.hidden_size
        self._check_sizes()
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Side S of the padded square that the vision tower was trained on, in pixels."""
        return int(self.vision_config.image_size)

    @property
    def feature_channels(self) -> list[int]:
        """Channels of res2, res3, res4 and res5."""
        return [self.vision_config.embed_dim * 2**level for level in range(len(SWIN_STAGES))]

    def _check_sizes(self) -> None:
        multiples = (
            ("mm_hidden_dim", self.mm_hidden_dim, "mm_n_heads", self.mm_n_heads),
            ("conv_dim", self.conv_dim, "num_heads", self.num_heads),
            ("hidden_dim", self.hidden_dim, "num_heads", self.num_heads),
            ("conv_dim", self.conv_dim, "the groups of its GroupNorm", 32),
        )
        for name, value, divisor_name, divisor in multiples:
            if divisor < 1 or value < 1 or value % divisor:
                raise ValueError(f"{name} must be a multiple of {divisor_name}, but got {value} and {divisor}")
        if self.projector_outdim != self.text_config.hidden_size:
            raise ValueError(
                f"projector_outdim must be the LLM's hidden size {self.text_config.hidden_size}, "
                f"but got {self.projector_outdim}"
            )


AutoConfig.register(PsalmConfig.model_type, PsalmConfig)
