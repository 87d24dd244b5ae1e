"""Random weights: the published formats, and the small sizes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from psalm.model.weight_files import open_weights
from psalm.tools.make_random_weights import write_random_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_random_weights(folder, "small")
    return folder


def test_the_language_model_is_a_folder_as_on_the_hub(folder: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (folder / "phi").iterdir()}
    weights = load_file(folder / "phi" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias"} <= weights.keys()


@pytest.mark.parametrize(("swin_type", "width"), [("base", 24), ("large", 32)])
def test_a_tower_is_detectron2s_pickle(folder: Path, swin_type: str, width: int) -> None:
    weights = open_weights(folder / f"swin_{swin_type}.pkl")
    assert {name.split(".")[0] for name in weights} == {"backbone", "sem_seg_head", "criterion"}
    assert weights["backbone.patch_embed.proj.weight"].shape[0] == width
    assert weights["sem_seg_head.predictor.class_embed.weight"].shape[0] == 134
    queries = ("sem_seg_head.predictor.query_embed.weight", "sem_seg_head.predictor.query_feat.weight")
    assert weights[queries[0]].shape == weights[queries[1]].shape


def test_a_projector_has_parameters_alone_in_float16(folder: Path) -> None:
    weights = torch.load(folder / "mm_projector_base.bin", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert all(name.startswith("model.mm_projector.") for name in weights)
    assert not [name for name in weights if "running" in name]
    assert weights["model.mm_projector.layer1.0.conv1.weight"].shape[1] == 8 * 24
    assert weights["model.mm_projector.fc.weight"].shape[0] == 96


def test_the_seed_decides_what_is_drawn(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_random_weights(tmp_path / str(seed), "small", seed, towers=["base"])
    drawn = [load_file(each / "phi" / "model.safetensors") for each in (folder, tmp_path / "0", tmp_path / "1")]
    same = [torch.equal(drawn[0]["lm_head.weight"], other["lm_head.weight"]) for other in drawn[1:]]
    assert same == [True, False]
    assert not (tmp_path / "0" / "swin_large.pkl").exists()
