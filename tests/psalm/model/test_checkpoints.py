"""A model is put together from files of several kinds; what fits is known before it is built."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from psalm.model.checkpoints import build_model, check_model, load_model
from psalm.model.configuration import PsalmConfig
from psalm.model.language_model.llava_phi import PsalmForSegmentation

Folder = Callable[..., Path]


def build(tower: Path, **settings: Any) -> PsalmForSegmentation:
    return build_model("builtin", str(tower), "base", **settings)[0]


def test_missing_folders_are_named(empty_tower: Path) -> None:
    message = "^model_name_or_path must be 'builtin' or a folder, but there is no folder microsoft/phi-1_5$"
    with pytest.raises(ValueError, match=message):
        build_model("microsoft/phi-1_5", str(empty_tower), "base")


def test_overrides_go_before_the_tower_and_none_is_no_override(empty_tower: Path) -> None:
    sizes = {"num_points": 32, "num_queries": None, "mm_hidden_dim": 64, "mm_n_heads": 2}
    config = build(empty_tower, random_weights=True, **sizes).config
    assert (config.num_points, config.num_queries, config.mm_hidden_dim, config.mm_n_heads) == (32, 8, 64, 2)
    assert config.mm_n_points == PsalmConfig.mm_n_points


def test_weights_depend_on_the_seed_alone(empty_tower: Path) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(empty_tower).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_projector_outdim_is_checked_against_the_llm(empty_tower: Path) -> None:
    for do in (build_model, check_model):
        with pytest.raises(ValueError, match="projector_outdim must be the LLM's hidden size 96, but got 2048"):
            do("builtin", str(empty_tower), "base", projector_outdim=2048)


def test_every_file_has_a_report_of_one_line(
    language_folder: Folder, empty_tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, adapter = language_folder(), tmp_path / "mm_projector.bin"
    torch.save({"mm_projector.fc.bias": torch.zeros(32)}, adapter)
    with caplog.at_level(logging.INFO, "psalm"):
        model, _ = build_model(str(folder), str(empty_tower), "base", pretrain_mm_mlp_adapter=str(adapter))
    assert [report.source for report in model.key_reports] == [folder, empty_tower / "model.safetensors", adapter]
    assert [message for message in caplog.messages if " loaded, " in message] == [*map(str, model.key_reports)]
    assert not any("\n" in message for message in caplog.messages)


def test_random_weights_read_no_file(empty_tower: Path) -> None:
    assert build(empty_tower, random_weights=True).key_reports == ()


def test_what_fits_is_known_without_memory_and_without_a_word(
    language_folder: Folder, empty_tower: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, adapter = language_folder(), tmp_path / "mm_projector.safetensors"
    save_file({"mm_projector.fc.bias": torch.zeros(32)}, adapter)
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "psalm"):
        check_model(str(folder), str(empty_tower), "base", pretrain_mm_mlp_adapter=str(adapter))
    assert torch.equal(torch.get_rng_state(), state)
    assert not [record for record in caplog.records if record.name.startswith("psalm")]


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        (
            "llm",
            "model.layers.0.mlp.fc1.bias",
            r"llm: .*layers\.0\.mlp\.fc1\.bias is \[7\] there, but \[48\] in the",
        ),
        ("tower", "sem_seg_head.predictor.decoder_norm.bias", r"decoder_norm\.bias is \[7\] there, but \[32\] in the"),
        ("adapter", "mm_projector.fc.bias", r"fc\.bias is \[7\] there, but \[32\] .*; it follows the language model$"),
    ],
)
def test_a_shape_that_does_not_fit_is_found_before_anything_is_built(
    language_folder: Folder, empty_tower: Path, tmp_path: Path, file: str, name: str, message: str
) -> None:
    folder, tower, adapter = language_folder(), tmp_path / "tower", tmp_path / "mm_projector.safetensors"
    tower.mkdir()
    (tower / "config.json").write_bytes((empty_tower / "config.json").read_bytes())
    files = {"llm": folder / "model.safetensors", "tower": tower / "model.safetensors", "adapter": adapter}
    save_file({"sem_seg_head.predictor.decoder_norm.weight": torch.zeros(32)}, files["tower"])
    save_file({"mm_projector.fc.weight": torch.zeros(32, 16)}, adapter)
    save_file({**load_file(files[file]), name: torch.zeros(7)}, files[file])
    with pytest.raises(ValueError, match=message) as refusal:
        check_model(str(folder), str(tower), "base", pretrain_mm_mlp_adapter=str(adapter))
    assert "\n" not in str(refusal.value)


def save(model: PsalmForSegmentation, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_saved_model_opens_with_its_tokenizer(empty_tower: Path, tmp_path: Path) -> None:
    model, tokenizer = build_model("builtin", str(empty_tower), "base")
    again, same = load_model(save(model, tokenizer, tmp_path / "run"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert same.get_vocab() == tokenizer.get_vocab()
    assert not again.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_opens_in_one_line(empty_tower: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Parameters in the type of the training, statistics of batch norms in float32, as DeepSpeed leaves them."""
    model, tokenizer = build_model("builtin", str(empty_tower), "base")
    for parameter in model.parameters():
        parameter.data = parameter.to(dtype)
    model.model.mm_projector.layer1[0].bn1.running_mean.fill_(0.1)
    again = PsalmForSegmentation.from_pretrained(save(model, tokenizer, tmp_path / "run"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}


def test_a_saved_model_is_a_start_and_the_same_one(empty_tower: Path, tmp_path: Path) -> None:
    model, tokenizer = build_model("builtin", str(empty_tower), "base")
    folder = save(model, tokenizer, tmp_path / "run")
    again, same = build_model(str(folder), "builtin", "base")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert same.get_vocab() == tokenizer.get_vocab()
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_only_a_psalm_checkpoint_opens_as_one(language_folder: Folder) -> None:
    with pytest.raises(ValueError, match="is not the configuration of a PSALM model"):
        load_model(language_folder())


def test_code_that_a_checkpoint_names_is_not_run(empty_tower: Path, tmp_path: Path) -> None:
    model, tokenizer = build_model("builtin", str(empty_tower), "base")
    folder = save(model, tokenizer, tmp_path / "run")
    (folder / "code.py").write_text(f'open({str(tmp_path / "was run")!r}, "w").close()\nclass Model: ...\n')
    config = json.loads((folder / "config.json").read_text())
    foreign = {"auto_map": {"AutoModel": "code.Model"}, "attn_implementation": "someone/kernels"}
    config |= foreign | {"text_config": config["text_config"] | foreign}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(folder)[0].model.config._attn_implementation == "sdpa"
    assert not (tmp_path / "was run").exists()
