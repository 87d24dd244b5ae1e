"""Packages, compilers and devices."""

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from psalm.doctor.findings import Status
from psalm.doctor.surroundings import check_compiler, check_dependencies, check_device, check_requirements
from psalm.train.arguments import SettingError, check_inputs

Settings = Callable[..., dict[str, Any]]


def test_a_package_in_a_version_that_does_not_fit_is_named() -> None:
    version = importlib.metadata.version("numpy")
    found = check_requirements(["numpy<1", "torch>=2", "rich>=14"])
    assert [(finding.status, finding.text) for finding in found] == [
        (
            Status.PROBLEM,
            f"numpy {version} is installed, but numpy<1 is needed; pip install -c constraints.txt -e .",
        )
    ]


def test_a_package_that_is_missing_is_named() -> None:
    (finding,) = check_requirements(["no-such-package[extra]>=1"])
    assert finding.status is Status.PROBLEM
    assert finding.text.startswith("no-such-package is not installed, but no-such-package[extra]>=1 is needed")


def test_extras_and_other_platforms_are_left_out() -> None:
    (finding,) = check_requirements(["none-a; extra == 'test'", "none-b; sys_platform == 'nowhere'", "numpy>=2"])
    assert (finding.status, finding.text) == (Status.OK, "1 packages, all in versions that fit")


def test_the_projects_own_requirements_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked.append(name) or ["no-such-package"])
    (finding,) = check_dependencies()
    assert asked == ["psalm-deformable"]
    assert finding.status is Status.PROBLEM


def test_a_missing_compiler_matters_where_deepspeed_may_compile(
    values: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert check_compiler(values(deepspeed="zero2")) == [], "nothing is compiled on a CPU"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    (finding,) = check_compiler(values(deepspeed="zero2", use_cpu=False))
    assert finding.status is Status.ADVICE
    assert finding.text.startswith("a C++ compiler and ninja not found")
    assert check_compiler(values(use_cpu=False)) == []


def test_a_cpu_is_shared_by_the_processes_on_it(values: Settings) -> None:
    device, (finding,) = check_device(values(bf16=True), count=4)
    assert device is not None
    assert (device.kind, device.count) == ("cpu", 4)
    assert device.free == pytest.approx(psutil.virtual_memory().available / 4, rel=0.2)
    assert finding.text.startswith(f"CPU, torch threads: {torch.get_num_threads()}, ")


def test_half_precision_that_a_cpu_lacks_is_refused_as_by_the_training(given: Settings, values: Settings) -> None:
    with pytest.raises(SettingError) as error:
        check_inputs(given(fp16=True))
    device, found = check_device(values(fp16=True))
    assert device is None
    assert (found[-1].status, found[-1].text) == (Status.PROBLEM, str(error.value))


def test_full_size_weights_on_a_cpu_are_advised_against(values: Settings, tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    _, found = check_device(values(model_name_or_path=str(tmp_path)))
    assert found[-1].status is Status.ADVICE
    assert found[-1].text.startswith("3.0 GiB of weights on a CPU")
