"""Which parameters are trained, by PSALM's and LLaVA's flags."""

from psalm.model.language_model.llava_phi import PsalmForSegmentation


def set_trainable(
    model: PsalmForSegmentation,
    *,
    train_backbone: bool = False,
    freeze_backbone: bool = False,
    tune_mm_mlp_adapter: bool = False,
    freeze_mm_mlp_adapter: bool = False,
) -> None:
    """Sets which parameters are trained, named after PSALM's and LLaVA's flags.

    Args:
        model: changed in place.
        train_backbone: the vision tower is trained; it is frozen otherwise.
        freeze_backbone: the LLM is frozen (LLaVA's backbone).
        tune_mm_mlp_adapter: the projectors alone are trained.
        freeze_mm_mlp_adapter: the projectors are frozen; the statistics of their batch norms stay as they are.

    Raises:
        ValueError: the projectors alone are to be trained, but they are frozen or the vision tower is trained too.
    """
    for name, given in (("train_backbone", train_backbone), ("freeze_mm_mlp_adapter", freeze_mm_mlp_adapter)):
        if tune_mm_mlp_adapter and given:
            raise ValueError(f"tune_mm_mlp_adapter trains the projectors and nothing else, but {name} is set too")
    llm = model.model
    projectors = [part for name, part in llm.named_children() if name.startswith("mm_projector")]
    model.requires_grad_(not tune_mm_mlp_adapter)
    if freeze_backbone:
        llm.requires_grad_(False)
    for projector in projectors:
        projector.requires_grad_(not freeze_mm_mlp_adapter)
    llm.vision_tower.requires_grad_(train_backbone)
    for part in (llm.vision_tower, *projectors):
        part.train(model.training)
