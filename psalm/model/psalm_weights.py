"""Whole PSALM checkpoints: a folder with language model, vision tower, mask decoder, projectors and tokenizer.

``model_type`` in ``config.json`` tells which kind it is:

- ``psalm``: ours, as ``save_pretrained`` writes it;
- ``llava_phi``: the released one. Its configuration is Phi's with some entries more; the sizes of everything but Phi
  are those of its weights, which are named as in PSALM's sources: ``model.vision_tower.*`` (below that as in
  Detectron2), ``pixel_decoder.*``, ``predictor.*``, ``seg_query``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PhiConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from psalm.model.configuration import PsalmConfig
from psalm.model.filling import Rename, outlines
from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.language_weights import fill_with_new_tokens, language_config, language_names
from psalm.model.projector_weights import DEFORMABLE, deciding_settings
from psalm.model.tower_sizes import tower_sizes
from psalm.model.vision_weights import DETECTRON2_PARTS, PARTS, vision_names
from psalm.model.weight_files import CONFIG_FILE, open_weights, read_json

OURS, RELEASED = PsalmConfig.model_type, "llava_phi"

_PROJECTION = "model.mm_projector.fc.weight"
_PHI_ROTATION = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Entries of Phi's older configurations, which are now one."""


def is_whole_checkpoint(folder: Path) -> bool:
    """Whether a folder, given as the language model's, is a PSALM checkpoint.

    Raises:
        ValueError: it has no configuration.
    """
    return read_json(folder / CONFIG_FILE).get("model_type") in (OURS, RELEASED)


def read_checkpoint_config(folder: Path, swin_type: str) -> dict[str, Any]:
    """The fields of ``PsalmConfig`` that a checkpoint decides.

    Raises:
        ValueError: a file is missing, is not what it should be, or is of another ``swin_type``.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    theirs = config.get("swin_type", swin_type)
    if theirs != swin_type:
        raise ValueError(f"swin_type is {swin_type}, but {path} is a checkpoint of swin_type {theirs}")
    if config["model_type"] == OURS:
        fields = {name: value for name, value in config.items() if name in PsalmConfig.__annotations__}
        return {**fields, "text_config": language_config(fields.get("text_config", {}), path)}
    weights = outlines(open_weights(folder))
    if _PROJECTION not in weights:
        raise ValueError(f"{folder} is no PSALM checkpoint: it has no {_PROJECTION}")
    mask2former = {
        name.replace(ours, theirs, 1): outline
        for name, outline in weights.items()
        for ours, theirs in zip(PARTS, DETECTRON2_PARTS, strict=True)
        if name.startswith(ours)
    }
    of_phi = {name: value for name, value in config.items() if name in (*PhiConfig().to_dict(), *_PHI_ROTATION)}
    return {
        **tower_sizes(mask2former, folder, swin_type),
        "mm_conv_planes": weights[_PROJECTION].shape[1],
        "text_config": language_config(of_phi | {"model_type": PhiConfig.model_type}, path),
    }


def load_checkpoint(model: PsalmForSegmentation, folder: Path) -> KeyReport:
    """Fills the whole model from a checkpoint.

    Only a deformable projector may be missing, which the baseline has not, and running statistics.

    Raises:
        ValueError: another weight is missing, one has another shape than the model's (both are named), or a deformable
            projector is another's although its shapes are the same.
    """
    config = read_json(folder / CONFIG_FILE)
    own = model.state_dict()
    rename = _saved_names(model) if config["model_type"] == OURS else _released_names(model, folder)
    report = fill_with_new_tokens(
        model,
        own,
        open_weights(folder),
        rename,
        folder,
        optional=lambda name: name.startswith(DEFORMABLE),
        explain=deciding_settings,
    )
    if any(name.startswith(DEFORMABLE) for name in report.loaded):
        _check_samples(model.config, config, folder)
    return report


def _check_samples(config: PsalmConfig, theirs: Mapping[str, Any], folder: Path) -> None:
    """8 heads with 4 points have the shapes of 4 heads with 8 points, and mean something else."""
    for name in ("mm_n_heads", "mm_n_points"):
        ours = getattr(config, name)
        if theirs.get(name, ours) != ours:
            raise ValueError(f"{name} is {ours}, but {theirs[name]} in the deformable projector of {folder}")


def _saved_names(model: PsalmForSegmentation) -> Rename:
    """From the names in our checkpoints; the Swin's may be those of transformers' older files."""
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]

    def rename(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {rename_source_key(name, renamings, [])[0]: tensor}

    return rename


def _released_names(model: PsalmForSegmentation, source: Path) -> Rename:
    of_language_model = language_names(model.model, source)
    of_vision = vision_names(PARTS, model.config.num_queries, source)

    def rename(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        if name.startswith(PARTS):
            return of_vision(name, tensor)
        if name.startswith("model."):
            return of_language_model(name, tensor)
        return {name: tensor[: model.config.num_queries] if name == "seg_query" else tensor}

    return rename
