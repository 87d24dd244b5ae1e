"""PSALM (arXiv 2403.14598) with deformable alignment tokens: an LLM that turns prompts into mask queries.

Each task asks for something: classes by their names, an object by an expression, or what regions point at. The LLM
reads one sequence per image, in which (+) marks the deformable tokens, one per thing that is asked:

====================  ==========================================================================
class tasks           text <image>(+) text <cls> .. <cls> text <seg> text
referring             text <image>(+) text <refer> text <seg> text
region                text <image>(+) text <region> .. <region> text <seg> text
cross_image           text <image> text <region> .. <region> text <image1>(+) text <seg> text
====================  ==========================================================================

In ``cross_image`` regions of the prompt image (``<image>``) ask about the target image (``<image1>``); everywhere else
there is one image.

Letters: B batch, S padded side of an image, n image tokens, K things that are asked for (classes incl. background,
which is last; one expression; regions), W tokens of each, N masks of an image, Q seg queries, L prompt length, J
sentinels of one kind in a prompt, T spliced length, D width of the LLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from psalm.constants import (
    CLASS_TASKS,
    CROSS_IMAGE,
    IMAGE1_TOKEN_INDEX,
    IMAGE_TOKEN_INDEX,
    PANOPTIC,
    PROMPT_TOKEN_INDEX,
    REFERRING,
    REGION_TASKS,
    SEG_TOKEN_INDEX,
    TASKS,
)
from psalm.model.causal_masks import CausalMasks
from psalm.model.configuration import PsalmConfig
from psalm.model.key_report import KeyReport, folded
from psalm.model.mask_decoder.criterion import PsalmCriterion
from psalm.model.mask_decoder.pixel_decoder import PixelDecoder
from psalm.model.mask_decoder.prediction import Prediction
from psalm.model.mask_decoder.predictor import MaskedAttentionPredictor
from psalm.model.multimodal_encoder.swin import SwinVisionTower
from psalm.model.multimodal_inputs import masked_mean, plan, splice, take
from psalm.model.multimodal_projector.builder import build_projector
from psalm.model.region_pooling import pad_regions, pool_regions, unpad_regions

Given = TypeVar("Given")

Run = tuple[Tensor, Tensor]
"""What stands at the sentinels of one kind: embeddings [B, J, W, D], and bool [B, J, W] which of them do."""


@dataclass
class PsalmOutput(ModelOutput):
    """What one forward pass returns; fields that were not computed are absent.

    Attributes:
        loss: float32 scalar, the sum of ``losses``.
        losses: weighted losses of the task by name, each summed over the decoder's layers.
        predictions: the last layer's masks and scores.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    predictions: Prediction | None = None


class PsalmForSegmentation(PreTrainedModel):
    """The whole model; attributes are named as in PSALM's published weights.

    The LLM has no head: what is read from it are hidden states, and no loss on text is trained. Its own class
    (``text_config``) keeps its weights' names, so the vision parts are attached to it, as published: ``model.layers``,
    ``model.vision_tower``, ``model.mm_projector``.

    The vision tower is frozen until ``psalm.model.freezing`` says otherwise.

    Args:
        config: architecture and losses.
        language_model: an LLM of ``config.text_config`` to build around; it is drawn like the rest where it is None.

    Attributes:
        zero_deformable_tokens: replaces the deformable tokens by zeros, to measure what they contribute; not saved.
        key_reports: what became of the names in each file that it was filled from; not saved.
    """

    config_class = PsalmConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = {"running_mean", "running_var"}  # noqa: RUF012 - transformers' name and form

    def __init__(self, config: PsalmConfig, language_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        width, channels = config.text_config.hidden_size, config.feature_channels
        self.zero_deformable_tokens = False
        self.key_reports: tuple[KeyReport, ...] = ()

        if language_model is None:
            self.model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        else:
            self.model = language_model
            _keep_initial_weights(language_model)
        self.causal_masks = CausalMasks(config.text_config)
        self.model.vision_tower = SwinVisionTower(config.vision_config)
        self.model.vision_tower.freeze()
        self.model.mm_projector = build_projector(
            "swin_conv", input_dim=channels[-1], out_dim=width, planes=config.mm_conv_planes
        )
        _keep_initial_weights(self.model.mm_projector)
        if config.mm_projector_type == "deformable":
            self.model.mm_projector_deformable = build_projector(
                "deformable",
                feature_channels=channels,
                llm_dim=width,
                hidden_dim=config.mm_hidden_dim,
                n_heads=config.mm_n_heads,
                n_points=config.mm_n_points,
                reference_points=config.mm_reference_points,
            )
            _keep_initial_weights(self.model.mm_projector_deformable)

        self.seg_query = nn.Parameter(torch.randn(config.num_queries, width) * config.initializer_range)
        self.seg_query_projector = nn.Linear(width, config.hidden_dim)
        self.class_name_projector = nn.Linear(width, config.hidden_dim)
        self.SEG_token_projector = nn.Linear(width, config.hidden_dim)
        self.region_projector = nn.Linear(width, config.hidden_dim)

        self.pixel_decoder = PixelDecoder(
            in_channels=channels,
            conv_dim=config.conv_dim,
            mask_dim=config.mask_dim,
            num_heads=config.num_heads,
            feedforward_dim=config.encoder_feedforward_dim,
            num_layers=config.encoder_layers,
        )
        self.predictor = MaskedAttentionPredictor(
            in_channels=config.conv_dim,
            hidden_dim=config.hidden_dim,
            num_queries=config.num_queries,
            num_heads=config.num_heads,
            feedforward_dim=config.decoder_feedforward_dim,
            num_layers=config.decoder_layers,
            mask_dim=config.mask_dim,
        )
        self.criterion = PsalmCriterion(
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            num_points=config.num_points,
            oversample_ratio=config.oversample_ratio,
            importance_sample_ratio=config.importance_sample_ratio,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part draws its own initial weights when it is built."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but the vision tower is frozen, and a checkpoint that lacks weights is refused.

        Attention is torch's own if none is asked for: a configuration could name code on the hub.

        Raises:
            ValueError: names of the missing weights.
        """
        kwargs.setdefault("attn_implementation", "sdpa")
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"the checkpoint lacks {len(missing)} weights: {', '.join(folded(missing))}")
        model.model.vision_tower.freeze()
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, but under the names of ``state_dict``, which is how the Trainer reads it to resume.

        transformers would give the Swin's weights the names of its older files.
        """
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        task: str = PANOPTIC,
        prompt_length: int | None = None,
        region_masks: list[Tensor] | None = None,
        region_labels: list[Tensor] | None = None,
        prompt_pixel_values: Tensor | None = None,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        random_keys: Tensor | None = None,
        num_masks: float | Tensor | None = None,
        num_regions: float | Tensor | None = None,
        num_images: float | None = None,
        **unused: Any,
    ) -> PsalmOutput:
        """Predicts masks; computes losses too where ``mask_labels`` are given.

        Args:
            pixel_values: [B, 3, S, S], the images to segment, normalised, padded at the right and the bottom.
            input_ids: int64 [B, L], text ids and sentinels; ``attention_mask`` bool [B, L] marks what is no padding.
            prompt_ids: int64 [B, K, W], the tokens of what is asked, each time with [SEG] last: the names of the
                classes in the order of the prompt's ``<cls>``, or the expression (K = 1); ``prompt_mask`` bool
                [B, K, W]. None where regions ask.
            image_sizes: int64 [B, 2], valid (height, width) of each padded image; None means all of it.
            task: what the prompt asks for, one of ``psalm.constants.TASKS``.
            prompt_length: tokens of the batch's longest prompt: its text and what is asked (a region is one token), not
                other sentinels; where it is None it is computed, which costs a GPU one sync with the CPU.
            region_masks: bool [K, S, S] per image: what is asked in the tasks of regions, in the order of the prompt's
                ``<region>``, on the prompt image where there is one; ``region_labels`` int64 [K]: see
                ``PsalmCriterion``.
            prompt_pixel_values: [B, 3, S, S], the images that the regions of ``cross_image`` lie on.
            mask_labels: bool [N, S, S] per image, with ``class_labels`` int64 [N], positions among the classes.
            random_keys: int64 [B], what random points are drawn from: the losses', and those inside regions.
            num_masks: see ``PsalmCriterion``, as ``num_regions`` and ``num_images``.
            unused: the batch's other keys.

        Raises:
            ValueError: an unknown task, one that lacks an input, or labels without ``random_keys``.
        """
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, but got {task!r}")
        B, asked = len(input_ids), PROMPT_TOKEN_INDEX[task]
        features, image_tokens, pointed_tokens = self.look(task, pixel_values, prompt_pixel_values)
        if task in REGION_TASKS:
            masks, keys = _given("region_masks", region_masks, task), _given("random_keys", random_keys, task)
            regions = pool_regions(pointed_tokens, masks, keys)
            prompts_BKWD, mask_BKW = pad_regions(regions)
        else:
            prompts_BKWD = self.embed(_given("prompt_ids", prompt_ids, task))
            mask_BKW = _given("prompt_mask", prompt_mask, task)

        image_mask = image_tokens.new_ones(image_tokens.shape[:2], dtype=torch.bool)
        if self.config.mm_projector_type == "deformable":
            queries, query_mask = masked_mean(prompts_BKWD, mask_BKW), mask_BKW.any(-1)
            aligned = self.align(queries, query_mask, features, image_sizes, from_other_image=task == CROSS_IMAGE)
            image_tokens = torch.cat([image_tokens, aligned], 1)
            image_mask = torch.cat([image_mask, query_mask], 1)

        runs = {asked: (prompts_BKWD, mask_BKW), SEG_TOKEN_INDEX: _one_run(self.seg_query.expand(B, -1, -1))}
        if task == CROSS_IMAGE:
            runs[IMAGE_TOKEN_INDEX] = _one_run(pointed_tokens)
            runs[IMAGE1_TOKEN_INDEX] = _one_run(image_tokens, image_mask)
        else:
            runs[IMAGE_TOKEN_INDEX] = _one_run(image_tokens, image_mask)
        if prompt_length is not None:
            prompt_length += sum(mask[0].numel() for sentinel, (_, mask) in runs.items() if sentinel != asked)
        hidden, positions = self.read(input_ids, attention_mask, runs, prompt_length)  # [B, T, D]

        seg_states = take(hidden, positions[SEG_TOKEN_INDEX].squeeze(1))
        states = masked_mean(take(hidden, positions[asked]), mask_BKW)  # [B, K, D]
        mask_features, multi_scale = self.pixel_decoder(features)
        predictions = self.predictor(
            multi_scale,
            mask_features,
            self.seg_query_projector(seg_states),
            class_embeddings=self.class_name_projector(states) if task in CLASS_TASKS else None,
            seg_embeddings=self.SEG_token_projector(states) if task == REFERRING else None,
            region_embeddings=unpad_regions(self.region_projector(states), regions) if task in REGION_TASKS else None,
        )
        if mask_labels is None:
            return PsalmOutput(predictions=predictions[-1])
        if random_keys is None:
            raise ValueError("losses need random_keys, from which their points are drawn")
        losses = self.criterion(
            predictions,
            mask_labels,
            class_labels,
            random_keys,
            region_labels=region_labels,
            num_masks=num_masks,
            num_regions=num_regions,
            num_images=num_images,
        )
        return PsalmOutput(loss=torch.stack([*losses.values()]).sum(), losses=losses, predictions=predictions[-1])

    def look(
        self, task: str, pixel_values: Tensor, prompt_pixel_values: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What is seen of images [B, 3, S, S].

        Returns:
            The vision tower's maps res2..res5 of the images to segment, their baseline tokens [B, n, D], and those of
            the images that regions lie on: the same ones but in ``cross_image``. There both go through the projector
            together, since its batch norms take their statistics from the batch.
        """
        images = [pixel_values]
        if task == CROSS_IMAGE:
            images.append(_given("prompt_pixel_values", prompt_pixel_values, task))
        features = self.encode_image(torch.cat(images))
        tokens = self.model.mm_projector(features["res5"]).split(len(pixel_values))
        return {name: maps[: len(pixel_values)] for name, maps in features.items()}, tokens[0], tokens[-1]

    def encode_image(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The vision tower's maps res2..res5 of [B, 3, S, S]; no graph is kept of a frozen tower."""
        tower = self.model.vision_tower
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(trained):
            features: dict[str, Tensor] = tower(pixel_values)
        return features

    def align(
        self,
        queries: Tensor,
        query_mask: Tensor,
        features: dict[str, Tensor],
        image_sizes: Tensor | None,
        *,
        from_other_image: bool,
    ) -> Tensor:
        """Deformable tokens [B, K, D] of queries [B, K, D]; see the projector's ``forward``."""
        tokens: Tensor = self.model.mm_projector_deformable(
            queries, query_mask, features, image_sizes, from_other_image=from_other_image
        )
        return torch.zeros_like(tokens) if self.zero_deformable_tokens else tokens

    def read(
        self, input_ids: Tensor, attention_mask: Tensor, runs: Mapping[int, Run], length: int | None
    ) -> tuple[Tensor, Mapping[int, Tensor]]:
        """The LLM's last hidden states [B, T, D] of a prompt, and where in it each sentinel's run stands [B, J, W]."""
        layout = plan(input_ids, attention_mask, {sentinel: mask for sentinel, (_, mask) in runs.items()}, length)
        text = self.embed(input_ids.clamp(min=0))
        spliced = splice(layout, text, {sentinel: embeddings for sentinel, (embeddings, _) in runs.items()})
        return self.understand(spliced), layout.inserted

    def embed(self, ids: Tensor) -> Tensor:
        """The LLM's embeddings [..., D] of token ids [...]."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def understand(self, embeddings: Tensor) -> Tensor:
        """The LLM's last hidden states [B, T, D] of embeddings [B, T, D].

        Padding is at the end and attention is causal, so padding needs no mask.
        """
        output = self.model(inputs_embeds=embeddings, attention_mask=self.causal_masks(embeddings), use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden


def _given(name: str, value: Given | None, task: str) -> Given:
    if value is None:
        raise ValueError(f"task {task} needs {name}, but got none")
    return value


def _one_run(tokens: Tensor, mask: Tensor | None = None) -> Run:
    """Tokens [B, W, D] (all, or those that bool [B, W] marks) that stand at the only sentinel of their kind."""
    mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
    return tokens[:, None], mask[:, None]


def _keep_initial_weights(part: nn.Module) -> None:
    """Tells transformers that ``part`` has drawn its weights: it hangs below the LLM, whose rule would redraw them."""
    for module in part.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]


def startup_lines(model: PsalmForSegmentation) -> str:
    """What a run prints first, so that its user sees which projector is on: in Chinese, then in English."""
    llm = model.model
    deformable = model.config.mm_projector_type == "deformable"
    projector = llm.mm_projector_deformable if deformable else llm.mm_projector
    name = type(projector).__name__
    if not deformable:
        return f"✓ mm_projector 类型: {name}\n✓ mm_projector type: {name}"
    sizes = f"n_levels={projector.n_levels}, n_heads={projector.n_heads}, n_points={projector.n_points}"
    return (
        f"✓ mm_projector 类型: {name}\n  - Deformable参数: {sizes}\n"
        f"✓ mm_projector type: {name}\n  - Deformable parameters: {sizes}"
    )
