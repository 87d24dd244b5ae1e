"""Counts against published figures and transformers' own models; the table against sums that are easy to follow."""

import json
from typing import Any

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, PhiConfig, PhiForCausalLM, SwinConfig

from psalm.model import sizes
from psalm.model.activations import StepSizes, step_activations
from psalm.model.configuration import SWIN_STAGES, PsalmConfig
from psalm.model.parameters import (
    DEFORMABLE,
    LLM,
    PARTS,
    PROJECTOR,
    VISION_TOWER,
    count_parts,
    meta_model,
    published_parameters,
)
from psalm.model.sizes import KINDS, PROJECTORS, WHOLE, Sizes
from psalm.model.weight_files import BUILTIN_FOLDER, read_json

GIB, MIB = 2**30, 2**20


@pytest.fixture(scope="module")
def published() -> dict[str, int]:
    return published_parameters()


@pytest.fixture(scope="module")
def found() -> list[Sizes]:
    """All sizes, with activations that are easy to follow in place of measured ones, which take their time."""

    def activations(
        config: PsalmConfig, step: StepSizes, *, projectors_only: bool, gradient_checkpointing: bool
    ) -> int:
        of_kind = {(False, False): 6, (False, True): 3, (True, False): 2, (True, True): 1}
        of_tower = 10 * MIB if config.swin_type == "large" else 0
        return of_kind[projectors_only, gradient_checkpointing] * GIB + of_tower + config.mm_hidden_dim * 2**10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "step_activations", activations)
        return sizes.all_sizes(StepSizes())


@pytest.fixture
def printed(found: list[Sizes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command knows all sizes already."""
    monkeypatch.setattr(sizes, "all_sizes", lambda step, text_config: found)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("swin_base", 86.9), ("swin_large", 195.2), ("phi_1_5", 1418.3), ("mask2former_swin_base", 106.9)],
)
def test_parameters_are_the_published_ones(published: dict[str, int], name: str, millions: float) -> None:
    assert round(published[name] / 1e6, 1) == millions


def test_the_language_model_has_as_many_parameters_as_transformers_own(published: dict[str, int]) -> None:
    with torch.device("meta"):
        model = PhiForCausalLM(PhiConfig())
    assert published["phi_1_5"] == sum(map(torch.numel, model.parameters())) == 1_418_270_720


def test_mask2former_has_as_many_parameters_as_transformers_own(published: dict[str, int]) -> None:
    swin = SwinConfig(**PsalmConfig(swin_type="base").vision_config.to_dict() | {"out_features": SWIN_STAGES})
    with torch.device("meta"):
        model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=133))
    last_norm = 2 * 1024  # transformers' Swin has a norm after its last stage, which Detectron2's has not
    assert published["mask2former_swin_base"] == sum(map(torch.numel, model.parameters())) - last_norm


def test_every_parameter_belongs_to_a_part() -> None:
    model = meta_model(PsalmConfig(mm_reference_points="learned"))
    counts = count_parts(model)
    assert list(counts) == list(PARTS)
    assert sum(counts.values()) == sum(map(torch.numel, model.parameters()))
    assert counts[PROJECTOR] == sum(map(torch.numel, model.model.mm_projector.parameters()))
    assert counts["seg queries"] == 100 * 2048
    assert counts["small projections"] == 4 * (2048 * 256 + 256)


def test_what_is_trained() -> None:
    parts = {LLM: 1000, VISION_TOWER: 200, PROJECTOR: 30, DEFORMABLE: 4}
    each = Sizes("base", 256, parts, StepSizes(), dict.fromkeys(KINDS, 7))
    assert each.trained(WHOLE) == 1034
    assert each.trained(PROJECTORS) == 34
    need = each.need((PROJECTORS, False), 2, 2)
    assert (need.weights, need.gradients, need.optimizer, need.activations) == (2 * 1234, 34, 6 * 34, 7)


def test_images_are_as_many_as_a_card_has_room_for() -> None:
    parts = {LLM: GIB, VISION_TOWER: 0, PROJECTOR: 0, DEFORMABLE: 0}
    # 2 GiB of weights, 2 of gradients, 12 of the optimizer, 2 in reserve; 3 per image, or 8 of the update.
    each = Sizes("base", 256, parts, StepSizes(images=2), dict.fromkeys(KINDS, 6 * GIB))
    kind = KINDS[0]
    assert each.images(kind, 0, 1, 23) == 0, "no room for the update"
    assert each.images(kind, 0, 1, 24) == 2
    assert each.images(kind, 0, 1, 40) == 7


def test_activations_of_every_tower_and_width(found: list[Sizes]) -> None:
    assert [(each.swin_type, each.mm_hidden_dim) for each in found] == [
        (swin_type, width) for swin_type in ("base", "large") for width in (128, 256, 512, 1024)
    ]
    by_model = {(each.swin_type, each.mm_hidden_dim): each.activations for each in found}
    assert by_model["base", 512][PROJECTORS, True] == GIB + 512 * 2**10
    assert by_model["large", 256][WHOLE, True] == 3 * GIB + 10 * MIB + 256 * 2**10


def test_json_holds_every_step_of_every_model(
    printed: None, published: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizes.main(["--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert next(iter(content)) == "parameters"
    assert content["parameters"] == published
    assert content["step"]["image_size"] == 1024
    model = next(each for each in content["models"] if (each["swin_type"], each["mm_hidden_dim"]) == ("large", 128))
    assert model["parameters"]["vision tower"] == 195_201_204
    assert model["parameters"]["total"] == sum(model["parameters"][part] for part in PARTS)
    steps = {
        (step["trained"], step["gradient_checkpointing"], step["zero_stage"], step["gpus"]): step
        for step in model["steps"]
    }
    assert len(steps) == 2 * 2 * 4 * 4
    total, frozen = model["parameters"]["total"], model["parameters"]["vision tower"]
    step = steps["whole model", True, 2, 8]
    assert step["weights"] == 2 * total
    assert step["gradients"] == -(-2 * (total - frozen) // 8)
    assert step["activations"] == 3 * GIB + 10 * MIB + 128 * 2**10
    assert step["total"] == sum(step[part] for part in ("weights", "gradients", "optimizer", "activations"))
    assert step["images_per_gpu"]["24 GiB"] == 5


def test_tables_are_readable(printed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 130
    rows = [line.split() for line in lines]
    assert ["base", "256", "86.9", "62.9", "1.8", "1,313.4", "5.5", "14.8", "2.1", "0.2", "1,487.6"] in rows
    assert ["large", "1024", "6.0", "3.0", "2.0", "1.0"] in rows
    assert ["base", "2", "2", "2.8", "1.3", "7.8", "17.9", "15.8", "3", "8", "22"] in rows


def test_options_reach_the_steps(
    found: list[Sizes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def all_sizes(*arguments: Any) -> list[Sizes]:
        asked.extend(arguments)
        return found

    monkeypatch.setattr(sizes, "all_sizes", all_sizes)
    sizes.main(["--json", "--batch", "4", "--image_size", "512", "--llm", str(BUILTIN_FOLDER / "phi")])
    step, text_config = asked
    assert step == StepSizes(images=4, image_size=512)
    assert text_config.hidden_size == PhiConfig(**read_json(BUILTIN_FOLDER / "phi" / "config.json")).hidden_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "argument --batch: must be a whole number of at least 1, but got '0'"),
        (["--image_size", "16"], "argument --image_size: must be a whole number of at least 32, but got '16'"),
        (["--llm", "nowhere"], "nowhere/config.json is missing"),
    ],
)
def test_a_wrong_argument_ends_with_its_reason(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = sizes.main(arguments)
    except SystemExit as exit_:  # argparse's own
        code = exit_.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.full
def test_activations_that_are_not_measured_are_near_those_that_are() -> None:
    """Of a tower and a width that no step was run for together, nor the width for any tower."""
    step = StepSizes()
    each = next(each for each in sizes.all_sizes(step) if (each.swin_type, each.mm_hidden_dim) == ("large", 512))
    config = PsalmConfig(swin_type="large", mm_hidden_dim=512)
    for kind, estimate in each.activations.items():
        what, gradient_checkpointing = kind
        measured = step_activations(
            config, step, projectors_only=what == PROJECTORS, gradient_checkpointing=gradient_checkpointing
        )
        assert estimate == pytest.approx(measured, rel=0.01)
