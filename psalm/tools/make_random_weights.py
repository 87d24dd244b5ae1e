"""Writes weights that say nothing, in the formats in which the published ones come: to try loading and real sizes.

    python -m psalm.tools.make_random_weights FOLDER [--size small|full] [--towers base large] [--seed N]

===============================  ===================================================================================
``phi/``                         a language model as on the hub: configuration, tokenizer, float16 safetensors
``swin_base.pkl``                Mask2Former as Detectron2 pickles it: backbone, pixel decoder, predictor with class
``swin_large.pkl``               head and query features (``large`` with 200 queries), criterion
``mm_projector_base.bin``        the baseline projector as PSALM stores it: parameters alone, float16, for that tower
``mm_projector_large.bin``       likewise
===============================  ===================================================================================

``full`` has the published sizes (Phi-1.5, Swin-B and Swin-L, 4.5 GB); the tokenizer is the built-in toy one. ``small``
has the built-in sizes, and the towers are the built-in ones, so that a training on them learns.
"""

import argparse
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM

from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.pixel_decoder import pixel_decoder_to_detectron2
from psalm.model.multimodal_encoder.swin import swin_to_detectron2
from psalm.model.multimodal_projector.conv import SwinConvProjector
from psalm.model.weight_files import BUILTIN_FOLDER, CONFIG_FILE, WEIGHTS_FILE, read_json

Size = Literal["small", "full"]
TOWERS = ("base", "large")
CLASSES = 133
"""Of COCO panoptic; the head has one more, for no object."""
LARGE_QUERIES = 200
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STANDARD_DEVIATION = 0.02


def write_random_weights(folder: Path, size: Size, seed: int = 0, towers: Sequence[str] = TOWERS) -> None:
    """Writes the files named above; what is there already is replaced. Draws from torch's global generator.

    Args:
        folder: is made where it is missing.
        size: small or full.
        seed: of everything that is drawn.
        towers: base, large or both.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    text_config = PhiConfig() if size == "full" else PhiConfig(**read_json(BUILTIN_FOLDER / "phi" / CONFIG_FILE))
    _write_phi(folder / "phi", text_config)
    for swin_type in towers:
        fields = {} if size == "full" else read_json(BUILTIN_FOLDER / f"swin_{swin_type}" / CONFIG_FILE)
        config = PsalmConfig(**{"text_config": text_config.to_dict(), "swin_type": swin_type, **fields})
        weights = _random_tower(swin_type) if size == "full" else _builtin_tower(swin_type)
        _write_pickle(folder / f"swin_{swin_type}.pkl", weights)
        projector = SwinConvProjector(config.feature_channels[-1], text_config.hidden_size, config.mm_conv_planes)
        named = {f"model.mm_projector.{name}": tensor.detach().half() for name, tensor in projector.named_parameters()}
        torch.save(named, folder / f"mm_projector_{swin_type}.bin")


def _write_phi(folder: Path, config: PhiConfig) -> None:
    folder.mkdir(exist_ok=True)
    with torch.device("meta"):
        shapes = PhiForCausalLM(config)
    save_file(dict(_drawn(shapes)), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    written = {**config.to_dict(), "architectures": ["PhiForCausalLM"], "dtype": "float16"}
    PhiConfig(**written).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(BUILTIN_FOLDER / "phi" / name, folder / name)


def _drawn(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter in float16, as Phi draws it."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            yield name, torch.full(parameter.shape, float(name.endswith("norm.weight")), dtype=torch.float16)
        else:
            yield name, torch.randn(parameter.shape).mul_(STANDARD_DEVIATION).half()


def _random_tower(swin_type: str) -> dict[str, Tensor]:
    """Backbone, pixel decoder and predictor at full size as they are initialised, under Detectron2's names."""
    queries = LARGE_QUERIES if swin_type == "large" else PsalmConfig.num_queries
    toy_language_model = read_json(BUILTIN_FOLDER / "phi" / CONFIG_FILE)
    model = PsalmForSegmentation(PsalmConfig(text_config=toy_language_model, swin_type=swin_type, num_queries=queries))
    only_psalms = ("CLASS_proj.", "SEG_proj.", "REGION_proj.", "adapter_1.bias", "layer_1.bias")
    parts = {
        "backbone.": swin_to_detectron2(model.model.vision_tower.state_dict()),
        "sem_seg_head.pixel_decoder.": pixel_decoder_to_detectron2(model.pixel_decoder.state_dict()),
        "sem_seg_head.predictor.": model.predictor.state_dict(),
    }
    weights = {
        prefix + name: tensor
        for prefix, state in parts.items()
        for name, tensor in state.items()
        if not name.startswith(only_psalms)
    }
    return weights | _mask2former_only(queries, model.config.hidden_dim)


def _builtin_tower(swin_type: str) -> dict[str, Tensor]:
    """The built-in tower's weights, and what Mask2Former has besides."""
    weights = {
        n: tensor.float() for n, tensor in load_file(BUILTIN_FOLDER / f"swin_{swin_type}" / WEIGHTS_FILE).items()
    }
    queries, width = weights["sem_seg_head.predictor.query_embed.weight"].shape
    return weights | _mask2former_only(queries, width)


def _mask2former_only(queries: int, width: int) -> dict[str, Tensor]:
    """What Mask2Former has and PSALM does not."""
    return {
        "sem_seg_head.predictor.query_feat.weight": torch.randn(queries, width),
        "sem_seg_head.predictor.class_embed.weight": torch.randn(CLASSES + 1, width) * STANDARD_DEVIATION,
        "sem_seg_head.predictor.class_embed.bias": torch.zeros(CLASSES + 1),
        "criterion.empty_weight": torch.ones(CLASSES + 1),
    }


def _write_pickle(path: Path, weights: Mapping[str, Tensor]) -> None:
    arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
    content: dict[str, Any] = {"model": arrays, "__author__": "random weights", "matching_heuristics": True}
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write random weights in the published formats.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=get_args(Size), default="small")
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_random_weights(given.folder, given.size, given.seed, given.towers)


if __name__ == "__main__":
    main()
