"""Baseline weights become a start for deformable training: what is kept, what is added, what is refused."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from psalm.model.checkpoints import build_model, load_model
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.multimodal_encoder.swin import swin_to_detectron2
from psalm.model.multimodal_projector.conv import SwinConvProjector
from psalm.tools import adapt_pretrain_to_deformable
from psalm.tools.adapt_pretrain_to_deformable import adapt_checkpoint, adapt_projector, main, next_steps
from psalm.tools.make_random_weights import write_random_weights
from psalm.train.arguments import check_setting

BASELINE, DEFORMABLE, TOWER = "model.mm_projector.", "model.mm_projector_deformable.", "model.vision_tower."
SETTINGS: dict[str, Any] = {"mm_hidden_dim": 16, "mm_n_heads": 4, "mm_n_points": 2, "mm_reference_points": "auto"}
PLANES, RES5 = 64, 8 * 24
"""Of the built-in projector, and of the built-in Swin of type base."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the published formats and built-in sizes."""
    folder = tmp_path_factory.mktemp("weights")
    write_random_weights(folder, "small")
    return folder


@pytest.fixture(scope="module")
def baseline(weights: Path) -> PsalmForSegmentation:
    """A baseline model whose batch norms have seen something."""
    torch.manual_seed(1)
    model, _ = build_model(
        str(weights / "phi"), str(weights / "swin_base.pkl"), "base",
        pretrain_mm_mlp_adapter=str(weights / "mm_projector_base.bin"), mm_projector_type="swin_conv",
        mm_conv_planes=PLANES,
    )  # fmt: skip
    model.model.mm_projector.train()(torch.randn(4, RES5, 6, 6))
    return model.eval()


def projectors(state: Mapping[str, Tensor], prefix: str = "model.mm_projector") -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Equal names, types and bits."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def deformable_model(weights: Path, adapter: Path) -> PsalmForSegmentation:
    torch.manual_seed(2)
    model, _ = build_model(
        str(weights / "phi"), str(weights / "swin_base.pkl"), "base", pretrain_mm_mlp_adapter=str(adapter),
        mm_conv_planes=PLANES, **SETTINGS,
    )  # fmt: skip
    return model.eval()


@pytest.mark.parametrize("prefix", [BASELINE, "mm_projector.", ""])
def test_a_published_projector_is_kept_bit_for_bit(weights: Path, tmp_path: Path, prefix: str) -> None:
    theirs = torch.load(weights / "mm_projector_base.bin", weights_only=True)
    torch.save({name.replace(BASELINE, prefix): tensor for name, tensor in theirs.items()}, tmp_path / "in.bin")
    start = adapt_projector(tmp_path / "in.bin", tmp_path / "out.safetensors", SETTINGS)
    written = load_file(tmp_path / "out.safetensors")
    assert same(projectors(written, BASELINE), theirs)
    assert written.keys() - theirs.keys() == projectors(written, DEFORMABLE).keys()
    assert set(start.report.loaded) == theirs.keys()
    assert len(start.report.initial) == 9  # three statistics of three batch norms
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_baselines_tokens_stay_as_they_were(weights: Path, baseline: PsalmForSegmentation, tmp_path: Path) -> None:
    save_file(projectors(baseline.state_dict()), tmp_path / "in.safetensors")
    adapt_projector(tmp_path / "in.safetensors", tmp_path / "out.safetensors", SETTINGS)
    model = deformable_model(weights, tmp_path / "out.safetensors")
    res5 = torch.randn(2, RES5, 5, 4)
    assert torch.equal(model.model.mm_projector(res5), baseline.model.mm_projector(res5))


def test_what_is_loaded_and_saved_is_what_was_written(
    weights: Path, baseline: PsalmForSegmentation, tmp_path: Path
) -> None:
    save_file(projectors(baseline.state_dict()), tmp_path / "in.safetensors")
    adapt_projector(tmp_path / "in.safetensors", tmp_path / "out.safetensors", SETTINGS)
    model = deformable_model(weights, tmp_path / "out.safetensors")
    (report,) = (each for each in model.key_reports if each.source == tmp_path / "out.safetensors")
    assert report.unused == report.initial == ()
    model.save_pretrained(tmp_path / "run")
    assert same(projectors(load_file(tmp_path / "run" / "model.safetensors")), load_file(tmp_path / "out.safetensors"))


def test_new_tokens_are_zero_and_the_rest_is_drawn_as_for_any_training(weights: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    adapt_projector(weights / "mm_projector_base.bin", tmp_path / "out.safetensors", SETTINGS)
    added = projectors(load_file(tmp_path / "out.safetensors"), DEFORMABLE)
    zero = {f"{DEFORMABLE}output_proj.weight", f"{DEFORMABLE}output_proj.bias"}
    assert not any(added[name].any() for name in zero)
    fresh = deformable_model(weights, weights / "mm_projector_base.bin").model.mm_projector_deformable.state_dict()
    assert {name.removeprefix(DEFORMABLE): tensor.shape for name, tensor in added.items()} == {
        name: tensor.shape for name, tensor in fresh.items()
    }
    for name, tensor in added.items():
        if name not in zero:
            ours = fresh[name.removeprefix(DEFORMABLE)]
            assert tensor.float().std() == pytest.approx(float(ours.std()), rel=0.3, abs=1e-6), name


def whole(tmp_path: Path, weights: Path, model: PsalmForSegmentation) -> Path:
    """A checkpoint of ours."""
    model.save_pretrained(tmp_path / "in")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(weights / "phi" / name, tmp_path / "in" / name)
    return tmp_path / "in"


def released(tmp_path: Path, weights: Path, model: PsalmForSegmentation) -> Path:
    """A checkpoint in float16, laid out and named as the released one."""
    folder = tmp_path / "in"
    shutil.copytree(weights / "phi", folder)
    (folder / "model.safetensors").unlink()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith((TOWER, "criterion."))}
    state |= {
        TOWER + name: tensor for name, tensor in swin_to_detectron2(model.model.vision_tower.state_dict()).items()
    }
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(state, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llava_phi"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_checkpoint_of_ours_is_kept_bit_for_bit(
    weights: Path, baseline: PsalmForSegmentation, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = whole(tmp_path, weights, baseline)
    theirs = load_file(source / "model.safetensors")
    theirs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in theirs.items()}
    save_file(theirs, source / "model.safetensors", metadata={"format": "pt"})
    adapt_checkpoint(source, tmp_path / "out", SETTINGS)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert same({name: tensor for name, tensor in written.items() if not name.startswith(DEFORMABLE)}, theirs)
    assert not written[f"{DEFORMABLE}output_proj.weight"].any()
    model, tokenizer = load_model(tmp_path / "out")
    assert model.config.mm_projector_type == "deformable"
    assert {name: getattr(model.config, name) for name in SETTINGS} == SETTINGS
    assert len(tokenizer) <= model.config.text_config.vocab_size


def test_a_released_checkpoint_gets_our_names_and_keeps_its_bits(
    weights: Path, baseline: PsalmForSegmentation, tmp_path: Path
) -> None:
    adapt_checkpoint(released(tmp_path, weights, baseline), tmp_path / "out", SETTINGS)
    written = load_file(tmp_path / "out" / "model.safetensors")
    theirs = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in baseline.state_dict().items()
    }
    assert same({name: tensor for name, tensor in written.items() if not name.startswith(DEFORMABLE)}, theirs)


def test_the_arguments_told_go_on_from_it(weights: Path, baseline: PsalmForSegmentation, tmp_path: Path) -> None:
    start = adapt_checkpoint(whole(tmp_path, weights, baseline), tmp_path / "out", SETTINGS)
    assert {name: check_setting(name, value) for name, value in start.arguments.items()} == start.arguments
    model, _ = build_model(vision_tower="builtin", **start.arguments)
    assert same(model.state_dict(), load_file(tmp_path / "out" / "model.safetensors"))
    assert next_steps(start).count(f"--model_name_or_path {tmp_path / 'out'} --swin_type base --mm_projector_type") == 2


def test_it_says_what_became_of_each_name_and_how_to_go_on(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = weights / "mm_projector_base.bin", tmp_path / "new" / "start.safetensors"
    assert main([str(source), str(target), "--mm_n_points", "8"]) == 0
    report, made, _, check, go_on = capsys.readouterr().out.splitlines()
    assert report.startswith(f"{source}: 11 loaded, 0 unused, 9 (model.mm_projector.layer1.0.")
    assert made == f"{target}: as {source}, with a deformable projector whose tokens are zero at first"
    flags = f"--pretrain_mm_mlp_adapter {target} --mm_conv_planes 64 --mm_projector_type deformable --mm_hidden_dim 256"
    assert check.startswith(f"  python -m psalm.doctor --config experiments/train/from_baseline.yaml {flags} ")
    assert go_on.startswith(f"  python psalm/train/train.py --config experiments/train/from_baseline.yaml {flags} ")
    assert go_on.endswith(" --mm_n_points 8 --mm_reference_points auto --model_name_or_path LLM --vision_tower TOWER")


def test_the_seed_decides_what_is_drawn(weights: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert (
            main([str(weights / "mm_projector_base.bin"), str(tmp_path / f"{name}.safetensors"), "--seed", seed]) == 0
        )
    drawn = {name: (tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}
    assert drawn["a"] == drawn["b"] != drawn["c"]


def projector_file(path: Path, channels: int = 8, **changes: Tensor) -> None:
    state = SwinConvProjector(channels, 6, 4).state_dict()
    save_file({**{BASELINE + name: tensor for name, tensor in state.items()}, **changes}, path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mm_hidden_dim", "36"], "mm_hidden_dim must be a multiple of mm_n_heads, but got 36 and 8"),
        (["--mm_n_points", "0"], "mm_n_points must be at least 1, but got 0; choose another value"),
        (
            ["--mm_reference_points", "centre"],
            "mm_reference_points must be one of auto, center, proposal, learned, but ",
        ),
        (
            ["--swin_type", "huge"],
            "swin_type must be one of tiny, small, base, large, but got 'huge'; choose one of them",
        ),
        (
            ["--swin_type", "base"],
            "swin_type is base, whose res5 has 1024 channels, but IN is for 1536: use --swin_type ",
        ),
        (["--hidden_dim", "8"], "unrecognized arguments: --hidden_dim 8"),
    ],
)
def test_a_flag_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    source = tmp_path / "in.safetensors"
    projector_file(source, channels=1536)
    assert_refused([str(source), str(tmp_path / "out.safetensors"), *flags], capsys, message.replace("IN", str(source)))
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def assert_refused(argv: list[str], capsys: pytest.CaptureFixture[str], message: str) -> None:
    try:
        code: Any = main(argv)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith(message)
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("weights_in", "target", "message"),
    [
        (None, "out.safetensors", "{source} is missing: a file of weights "),
        ({}, "in.safetensors", "{source} is there already; remove it, or choose another name"),
        ({}, "out.bin", "OUT must end in .safetensors where IN is a file, but got {folder}/out.bin"),
        (
            {f"{DEFORMABLE}level_embed": torch.zeros(4, 8)},
            "out.safetensors",
            "{source} has a deformable projector already; go on from it with --pretrain_mm_mlp_adapter {source}",
        ),
        (
            {f"{BASELINE}layer1.0.bn1.bias": torch.zeros(5)},
            "out.safetensors",
            f"{{source}}: {BASELINE}layer1.0.bn1.bias is [5] there, but [4] in the model",
        ),
        (
            {f"{BASELINE}fc.weight": torch.zeros(3)},
            "out.safetensors",
            f"{{source}} has no weights of a baseline projector: {BASELINE}layer1.0.conv1.weight and ",
        ),
        (
            {f"{BASELINE}layer1.0.conv1.weight": torch.zeros(4, 12, 3, 3)},
            "out.safetensors",
            f"{{source}} fits no Swin: {BASELINE}layer1.0.conv1.weight takes 12 channels, which is no multiple of 8",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    weights_in: dict[str, Tensor] | None,
    target: str,
    message: str,
) -> None:
    source = tmp_path / "in.safetensors"
    if weights_in is not None:
        projector_file(source, **weights_in)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    expected = message.format(source=source, folder=tmp_path)
    assert_refused([str(source), str(tmp_path / target)], capsys, expected)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_used_is_one_line(
    weights: Path, baseline: PsalmForSegmentation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    phi = str(weights / "phi")
    assert_refused([phi, out], capsys, f"IN must be a file or a whole PSALM checkpoint, but {phi} is of model_type phi")
    source = whole(tmp_path, weights, baseline)
    assert_refused([str(source), out, "--swin_type", "large"], capsys, "swin_type is large, but ")
    assert_refused([str(source), str(source)], capsys, f"{source} is there already; remove it, or choose another name")
    assert main([str(source), out]) == 0
    capsys.readouterr()
    message = f"{out} has a deformable projector already; go on from it with --model_name_or_path {out}"
    assert_refused([out, str(tmp_path / "again")], capsys, message)


def test_nothing_half_written_is_left(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapt_pretrain_to_deformable, "save_file", fails)
    argv = [str(weights / "mm_projector_base.bin"), str(tmp_path / "out.safetensors")]
    assert_refused(argv, capsys, "[Errno 28] No space left on device")
    assert [*tmp_path.iterdir()] == []
