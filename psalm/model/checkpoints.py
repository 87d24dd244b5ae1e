"""Weights in: a model from an LLM's folder and a vision tower's, with every name accounted for.

A tower's folder holds ``config.json`` - any of ``TOWER_FIELDS`` of ``PsalmConfig`` - and ``model.safetensors`` under
Detectron2's names: ``backbone.*``, ``sem_seg_head.pixel_decoder.*``, ``sem_seg_head.predictor.*``.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from psalm.constants import SEG_TOKEN
from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.pixel_decoder import detectron2_to_pixel_decoder
from psalm.model.mask_decoder.predictor import detectron2_to_predictor
from psalm.model.multimodal_encoder.swin import detectron2_to_swin

log = logging.getLogger(__name__)

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).resolve().parents[1] / "builtin"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PAD_TOKEN = "<|pad|>"
TOWER_FIELDS = (
    "swin_type", "vision_config", "mm_conv_planes", "num_queries", "conv_dim", "mask_dim", "hidden_dim", "num_heads",
    "encoder_layers", "encoder_feedforward_dim", "decoder_layers", "decoder_feedforward_dim", "num_points",
)  # fmt: skip
"""What a tower's ``config.json`` may say: its own sizes, and those of the mask decoder that was trained with it."""


@dataclass(frozen=True)
class KeyReport:
    """What became of each name when weights were loaded.

    Attributes:
        source: the file.
        loaded: the model's names that were filled from it.
        unused: the file's names that the model has no place for.
        initial: names of the parts it was loaded into that the file lacks; they keep their initial values.
        computed: the file's names whose values follow from the architecture; the model computes them itself.
    """

    source: Path
    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    initial: tuple[str, ...]
    computed: tuple[str, ...]

    def __str__(self) -> str:
        def named(names: tuple[str, ...]) -> str:
            return f"{len(names)} ({', '.join(names)})" if names else "0"

        return (
            f"{self.source}: {len(self.loaded)} loaded, {named(self.unused)} unused, "
            f"{named(self.initial)} left at initial values, {len(self.computed)} computed instead"
        )


def build_model(
    model_name_or_path: str,
    vision_tower: str,
    swin_type: str,
    *,
    pretrain_mm_mlp_adapter: str | None = None,
    random_weights: bool = False,
    **overrides: Any,
) -> tuple[PsalmForSegmentation, PreTrainedTokenizerBase]:
    """A model at the start of its training, and its tokenizer.

    What the folders' weights do not cover is drawn from torch's global generator: seed it first. The built-in LLM has
    no weights, so all of it is.

    Args:
        model_name_or_path: the LLM's folder, or ``builtin``.
        vision_tower: the tower's folder, or ``builtin`` for the toy one of ``swin_type``.
        swin_type: base or large.
        pretrain_mm_mlp_adapter: a file of projector weights to start from.
        random_weights: leave the tower, the mask decoder and the LLM at random weights.
        overrides: fields of ``PsalmConfig``; those that are None are as the tower's folder or the defaults say.

    Raises:
        ValueError: a folder or file is missing, does not fit, or contradicts ``swin_type``; the message is one line.
    """
    llm_folder = resolve_language_model(model_name_or_path)
    tower_folder = resolve_vision_tower(vision_tower, swin_type)
    text_config = _read_language_config(llm_folder)
    tokenizer = load_tokenizer(llm_folder)
    text_config["vocab_size"] = max(text_config["vocab_size"], len(tokenizer))
    given = {name: value for name, value in overrides.items() if value is not None}
    config = PsalmConfig(**{**read_tower_config(tower_folder, swin_type), **given, "text_config": text_config})
    model = PsalmForSegmentation(config)
    if not random_weights:
        if model_name_or_path != BUILTIN:
            load_language_model(model, llm_folder)
        log.info("%s", load_vision_tower(model, tower_folder))
    if pretrain_mm_mlp_adapter is not None:
        log.info("%s", load_projectors(model, Path(pretrain_mm_mlp_adapter)))
    return model, tokenizer


def load_model(folder: str | Path) -> tuple[PsalmForSegmentation, PreTrainedTokenizerBase]:
    """A model that was saved by ``save_pretrained``, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the folder holds no such model, or not all of its weights.
    """
    folder = Path(folder)
    if _read_json(folder / CONFIG_FILE).get("model_type") != PsalmConfig.model_type:
        raise ValueError(f"{folder / CONFIG_FILE} is not the configuration of a PSALM model")
    return PsalmForSegmentation.from_pretrained(folder, local_files_only=True), load_tokenizer(folder)


def llm_hidden_size(model_name_or_path: str) -> int:
    """Width of the LLM's hidden states, read from its ``config.json`` alone.

    Raises:
        ValueError: there is no such file, or it does not say.
    """
    return int(_read_language_config(resolve_language_model(model_name_or_path))["hidden_size"])


def _read_language_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / CONFIG_FILE)
    for name in ("model_type", "hidden_size", "vocab_size"):
        if name not in config:
            raise ValueError(f"{folder / CONFIG_FILE} has no {name}: it is not the configuration of a language model")
    return config


def resolve_language_model(model_name_or_path: str) -> Path:
    """The LLM's folder; ``builtin`` is the toy Phi."""
    return (
        BUILTIN_FOLDER / "phi" if model_name_or_path == BUILTIN else _folder("model_name_or_path", model_name_or_path)
    )


def resolve_vision_tower(vision_tower: str, swin_type: str) -> Path:
    """The tower's folder; ``builtin`` is the toy tower of ``swin_type``."""
    if vision_tower == BUILTIN:
        return BUILTIN_FOLDER / f"swin_{swin_type}"
    return _folder("vision_tower", vision_tower)


def _folder(name: str, value: str) -> Path:
    if not Path(value).is_dir():
        raise ValueError(f"{name} must be {BUILTIN!r} or a folder, but there is no folder {value}")
    return Path(value)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, but holds a {type(content).__name__}")
    return content


def read_tower_config(folder: Path, swin_type: str) -> dict[str, Any]:
    """The fields of ``PsalmConfig`` that a tower's folder decides.

    Raises:
        ValueError: the file is missing, names another field, or is of another ``swin_type``.
    """
    path = folder / CONFIG_FILE
    fields = _read_json(path)
    unknown = sorted(set(fields) - set(TOWER_FIELDS))
    if unknown:
        raise ValueError(f"{path} may hold {', '.join(TOWER_FIELDS)}, but holds {', '.join(unknown)}")
    if fields.setdefault("swin_type", swin_type) != swin_type:
        raise ValueError(f"swin_type is {swin_type}, but {path} is a tower of swin_type {fields['swin_type']}")
    return fields


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with [SEG] and a padding token added where it has none.

    Raises:
        ValueError: the folder has no tokenizer.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(f"{folder} has no tokenizer: tokenizer.json, vocab.json or tokenizer.model is needed")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.add_tokens([SEG_TOKEN], special_tokens=True)
    return tokenizer


def load_language_model(model: PsalmForSegmentation, folder: Path) -> None:
    """Fills the LLM from a folder as on the hub (safetensors or ``.bin``, which is read as weights only).

    Rows of tokens that the folder does not know keep their initial values.

    Raises:
        ValueError: the folder has no weights, or lacks some.
    """
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ValueError(f"{folder} has no weights: *.safetensors or *.bin is needed")
    llm, info = AutoModel.from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder), local_files_only=True, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights: {', '.join(missing)}")
    state = llm.state_dict()
    rows = model.model.embed_tokens.weight.detach().clone()
    rows[: len(state["embed_tokens.weight"])] = state["embed_tokens.weight"]
    model.model.load_state_dict({**state, "embed_tokens.weight": rows}, strict=False)


def load_projectors(model: PsalmForSegmentation, path: Path) -> KeyReport:
    """Fills projectors from a file such as PSALM's ``mm_projector.bin`` (read as weights only) or a safetensors file.

    Names may have any prefix before ``mm_projector.`` or ``mm_projector_deformable.``.

    Raises:
        ValueError: the file is missing or holds anything but tensors, none of its names is a projector's, or one has
            another shape than the model's; both shapes are named.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.mm_projector")}
    filled, unused = {}, []
    for name, tensor in _read_tensors(path).items():
        ours = "model.mm_projector" + name.rpartition("mm_projector")[2]
        if ours not in own:
            unused.append(name)
        elif tensor.shape != own[ours].shape:
            raise ValueError(f"{path}: {name} is {list(tensor.shape)}, but {list(own[ours].shape)} in the model")
        else:
            filled[ours] = tensor
    if not filled:
        raise ValueError(f"{path} has no weights of a projector: names with mm_projector are expected")
    model.load_state_dict(filled, strict=False)
    return KeyReport(path, tuple(filled), tuple(unused), tuple(sorted(own.keys() - filled)), ())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a file of weights is expected")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as weights alone: {' '.join(str(error).split())}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} must hold tensors by name, but holds something else")
    return state


def load_vision_tower(model: PsalmForSegmentation, folder: Path) -> KeyReport:
    """Fills the vision tower, the pixel decoder and the predictor from a tower's folder.

    Raises:
        ValueError: there are no weights, or one has another shape than the model's; both shapes are named.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: a vision tower is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    return load_detectron2_weights(model, load_file(path), path)


def load_detectron2_weights(model: PsalmForSegmentation, weights: Mapping[str, Tensor], source: Path) -> KeyReport:
    """Fills the vision tower, the pixel decoder and the predictor from tensors under Detectron2's names.

    Raises:
        ValueError: one has another shape than the model's; both shapes are named. Nothing is changed then.
    """
    own = model.state_dict()
    parts = _parts(model)
    filled: dict[str, Tensor] = {}
    unused, computed = [], []
    for name, tensor in weights.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if name.endswith(".relative_position_index"):
            computed.append(name)
            continue
        renamed = {} if prefix is None else _rename(parts[prefix], {name.removeprefix(prefix): tensor}, source)
        if not any(ours in own for ours in renamed):
            unused.append(name)
        filled.update((ours, value) for ours, value in renamed.items() if ours in own)
    for name, value in filled.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit swin_type {model.config.swin_type}: {name} is {list(value.shape)} there, "
                f"but {list(own[name].shape)} in the model"
            )
    model.load_state_dict(filled, strict=False)
    initial = sorted(n for n in own if n.startswith(tuple(part.prefix for part in parts.values())) and n not in filled)
    return KeyReport(source, tuple(filled), tuple(unused), tuple(initial), tuple(computed))


@dataclass(frozen=True)
class _Part:
    prefix: str  # of our names
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def _parts(model: PsalmForSegmentation) -> dict[str, _Part]:
    """Detectron2's prefix -> ours, and how the names below it differ."""
    num_queries = model.config.num_queries
    return {
        "backbone.": _Part("model.vision_tower.", detectron2_to_swin),
        "sem_seg_head.pixel_decoder.": _Part("pixel_decoder.", detectron2_to_pixel_decoder),
        "sem_seg_head.predictor.": _Part("predictor.", lambda state: detectron2_to_predictor(state, num_queries)),
    }


def _rename(part: _Part, state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    try:
        return {part.prefix + name: tensor for name, tensor in part.rename(state).items()}
    except ValueError as error:
        raise ValueError(f"{source} does not fit: {error}") from error
