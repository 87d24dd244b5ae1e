"""Projectors start from PSALM's file of them, and from files that hold the deformable one too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.projector_weights import load_projectors

BASELINE, DEFORMABLE = "model.mm_projector.", "model.mm_projector_deformable."
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Build = Callable[..., PsalmForSegmentation]


SIZES: dict[str, Any] = {"mm_hidden_dim": 16, "mm_n_heads": 4, "mm_n_points": 2}


@pytest.fixture(scope="module")
def build(tiny_tower: dict[str, Any]) -> Build:
    language_model = {"vocab_size": 16, "hidden_size": 96, "intermediate_size": 8, "num_hidden_layers": 1}

    def make(seed: int = 0, **settings: Any) -> PsalmForSegmentation:
        torch.manual_seed(seed)
        return PsalmForSegmentation(PsalmConfig(**{**tiny_tower, "text_config": language_model, **SIZES, **settings}))

    return make


def projectors(model: PsalmForSegmentation, prefix: str = "model.mm_projector") -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}


def published(model: PsalmForSegmentation, prefix: str = BASELINE) -> dict[str, Tensor]:
    """What PSALM saves: the baseline's parameters in float16, without its statistics."""
    return {
        name.replace(BASELINE, prefix): parameter.detach().half()
        for name, parameter in model.named_parameters()
        if name.startswith(BASELINE)
    }


@pytest.mark.parametrize("prefix", [BASELINE, "mm_projector.", "", "module.base_model.model.mm_projector."])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_published_file_fills_the_baseline_projector(build: Build, tmp_path: Path, prefix: str, suffix: str) -> None:
    theirs, model, path = published(build(seed=1)), build(), tmp_path / f"mm_projector{suffix}"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored = {name.replace(BASELINE, prefix): tensor for name, tensor in theirs.items()}
    (torch.save if suffix == ".bin" else save_file)({**stored, "model.embed_tokens.weight": torch.zeros(2)}, path)
    report = load_projectors(model, path)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor.float()) for name, tensor in theirs.items())
    assert all(torch.equal(after[name], before[name]) for name in after if name not in theirs)
    assert set(report.loaded) == set(theirs)
    assert report.unused == ("model.embed_tokens.weight",)
    statistics = {name for name in before if name.startswith(BASELINE) and name.endswith(STATISTICS)}
    assert set(report.initial) == statistics | {name for name in before if name.startswith(DEFORMABLE)}


def test_a_file_with_both_projectors_fills_both(build: Build, tmp_path: Path) -> None:
    theirs, model = projectors(build(seed=1)), build()
    save_file(theirs, tmp_path / "start.safetensors")
    report = load_projectors(model, tmp_path / "start.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in projectors(model).items())
    assert set(report.loaded) == set(theirs)
    assert report.initial == report.unused == ()


def test_a_baseline_has_no_place_for_the_other_projector(build: Build, tmp_path: Path) -> None:
    theirs, model = projectors(build(seed=1)), build(mm_projector_type="swin_conv")
    save_file(theirs, tmp_path / "start.safetensors")
    report = load_projectors(model, tmp_path / "start.safetensors")
    assert set(report.unused) == {name for name in theirs if name.startswith(DEFORMABLE)}
    assert set(report.loaded) == {name for name in theirs if name.startswith(BASELINE)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mm_hidden_dim": 32},
            r"weights\.weight is \[32, 32\] there, but \[32, 16\] in the model; it follows mm_hidden_dim$",
        ),
        ({"mm_n_heads": 8}, r"is \[64\] there, but \[32\] in the model; it follows mm_n_heads and mm_n_points$"),
        ({"mm_n_points": 4}, r"is \[64\] there, but \[32\] in the model; it follows mm_n_heads and mm_n_points$"),
        ({"mm_conv_planes": 8}, r"is \[96, 8\] there, but \[96, 16\] in the model; it follows mm_conv_planes$"),
    ],
)
def test_a_size_that_differs_is_told_with_the_setting_that_decides_it(
    build: Build, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = tmp_path / "start.safetensors"
    save_file(projectors(build(**settings), BASELINE if "mm_conv_planes" in settings else DEFORMABLE), path)
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_projectors(model, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "shape", "follows"),
    [
        ("model.mm_projector.layer1.0.conv1.weight", (16, 192, 3, 3), "swin_type"),
        ("model.mm_projector.fc.weight", (64, 16), "the language model"),
        ("model.mm_projector.fc.bias", (64,), "the language model"),
        ("model.mm_projector_deformable.level_proj.0.weight", (16, 24), "swin_type"),
        ("model.mm_projector_deformable.query_proj.weight", (16, 64), "the language model"),
        ("model.mm_projector_deformable.query_proj.bias", (8,), "mm_hidden_dim"),
        ("model.mm_projector_deformable.output_proj.weight", (96, 8), "mm_hidden_dim"),
        ("model.mm_projector_deformable.attention.output_proj.weight", (16, 8), "mm_hidden_dim"),
        ("model.mm_projector_deformable.attention.attention_weights.weight", (32, 8), "mm_hidden_dim"),
    ],
)
def test_every_size_has_a_setting(
    build: Build, tmp_path: Path, name: str, shape: tuple[int, ...], follows: str
) -> None:
    save_file({name: torch.zeros(shape)}, tmp_path / "start.safetensors")
    with pytest.raises(ValueError, match=rf"{name} is .* there, but .* in the model; it follows {follows}$"):
        load_projectors(build(), tmp_path / "start.safetensors")


def test_a_file_without_a_projector_is_refused(build: Build, tmp_path: Path) -> None:
    torch.save({"backbone.norm0.bias": torch.zeros(3)}, tmp_path / "swin.bin")
    with pytest.raises(ValueError, match=r"swin\.bin has no weights of a projector: names with mm_projector are exp"):
        load_projectors(build(), tmp_path / "swin.bin")
