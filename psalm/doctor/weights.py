"""Checks 5 and 6: the model built as training builds it, what filled it, and that the deformable projector is on."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from psalm.doctor.findings import Finding, Findings, advice, ok, problem, shortened
from psalm.doctor.memory import lacking
from psalm.doctor.surroundings import Device
from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.weight_files import BUILTIN
from psalm.train.arguments import parse_settings
from psalm.train.fingerprints import count_parameters
from psalm.train.tasks import ratios_of
from psalm.train.train import build_trainer
from psalm.train.trainer import PsalmTrainer


def check_weights(
    values: Mapping[str, Any], tasks: Sequence[str], device: Device, output_dir: str
) -> tuple[PsalmTrainer | None, Findings]:
    """The trainer as a run would start with, None if it cannot be built; and what was found.

    Args:
        values: every setting.
        tasks: those whose data can be read; the trainer has no others.
        device: what it runs on.
        output_dir: takes the place of the run's, since a trainer makes its folder.
    """
    changed = {"output_dir": output_dir, "deepspeed": None, **only(tasks, values)}
    try:
        trainer = build_trainer(parse_settings({**values, **changed}))
    except torch.OutOfMemoryError:
        return None, [lacking("the model alone does not fit into the device's memory", values, device)]
    except (ValueError, OSError) as error:
        return None, [problem(error)]
    found = [finding for report in trainer.model.key_reports for finding in report_findings(report)]
    return trainer, [_size(trainer.model), _language_model(values["model_name_or_path"]), *found]


def only(tasks: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a run one of these tasks alone."""
    ratios = ",".join(f"{task}={ratio:g}" for task, ratio in ratios_of(values).items() if task in tasks)
    return {"seg_task": ",".join(tasks), "cross_image_seg_task": False, "data_ratio": ratios or None}


def report_findings(report: KeyReport) -> Findings:
    """What was matched, what the file has besides, and what it lacks."""
    computed = f", {len(report.computed)} computed instead" if report.computed else ""
    unused = f", {len(report.unused)} not expected ({shortened(report.unused)})" if report.unused else ""
    text = f"{report.source}: {len(report.loaded)} names matched{computed}{unused}"
    found = [ok(text) if report.loaded else advice(text)]
    if report.initial:
        names = f"{len(report.initial)} names missing, left at initial values: {shortened(report.initial)}"
        found.append(advice(f"{report.source.parent.name}/{report.source.name}: {names}"))
    return found


def _size(model: PsalmForSegmentation) -> Finding:
    total, trained = count_parameters(model), count_parameters(model, trainable=True)
    return ok(f"{total / 1e6:.1f} million parameters, {trained / 1e6:.1f} million of them trained")


def _language_model(name_or_path: str) -> Finding:
    if name_or_path == BUILTIN:
        return advice("language model: random weights (builtin); --model_name_or_path DIR takes a trained one")
    return ok(f"language model: loaded from {name_or_path}")


def check_projector(model: PsalmForSegmentation) -> Findings:
    """The class and the sizes of the projector that the model has."""
    if model.config.mm_projector_type != "deformable":
        name = type(model.model.mm_projector).__name__
        return [advice(f"{name}: the deformable module is off: --mm_projector_type deformable")]
    projector = model.model.mm_projector_deformable
    sizes = f"n_levels={projector.n_levels}, n_heads={projector.n_heads}, n_points={projector.n_points}"
    return [ok(f"{type(projector).__name__} is on: {sizes}")]
