"""Projector weights to start from: PSALM's ``mm_projector.bin``, or a safetensors file."""

from pathlib import Path

from psalm.model.key_report import KeyReport
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.weight_files import open_weights


def load_projectors(model: PsalmForSegmentation, path: Path) -> KeyReport:
    """Fills projectors from a file such as PSALM's ``mm_projector.bin`` (read as weights only) or a safetensors file.

    Names may have any prefix before ``mm_projector.`` or ``mm_projector_deformable.``.

    Raises:
        ValueError: the file is missing or holds anything but tensors, none of its names is a projector's, or one has
            another shape than the model's; both shapes are named.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("model.mm_projector")}
    filled, unused = {}, []
    for name, tensor in open_weights(path).items():
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
