"""Trains the toy vision towers that ship with the package: a Mask2Former alone, without any language model.

As in the real recipe, PSALM starts from a tower, pixel decoder and predictor that were trained to segment. The images
are the built-in data set's, of another seed, so none of them is ever seen again. The linear classifier and the query
features are left out of the file, as PSALM does not use them.

    python -m psalm.tools.pretrain_builtin_tower --swin_type base
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import set_seed

from psalm.data.builtin import ensure_builtin
from psalm.data.coco_panoptic import PanopticData
from psalm.data.collator import Batch, Collator
from psalm.data.examples import create_examples
from psalm.data.prompts import PromptBuilder
from psalm.data.questions import Evaluation
from psalm.data.schedule import TrainingSchedule
from psalm.model.checkpoints import build_model
from psalm.model.language_model.llava_phi import PsalmForSegmentation
from psalm.model.mask_decoder.pixel_decoder import pixel_decoder_to_detectron2
from psalm.model.mask_decoder.prediction import Prediction
from psalm.model.multimodal_encoder.swin import swin_to_detectron2
from psalm.model.postprocess import resize_masks
from psalm.model.weight_files import BUILTIN, BUILTIN_FOLDER, WEIGHTS_FILE
from psalm.train.scorers import PanopticScorer
from psalm.train.scoring import make_loader

logger = logging.getLogger(__name__)

TOWER_DATA_SEED = 1009
"""Seed of the towers' images; the searches' built-in data has another."""
PSALM_ONLY = ("CLASS_proj.", "SEG_proj.", "REGION_proj.")
"""Parts of the predictor that a Mask2Former has not."""


class Mask2Former(nn.Module):
    """PSALM's vision parts with learned queries and class embeddings in the place of the LLM's."""

    def __init__(self, model: PsalmForSegmentation, classes: int) -> None:
        super().__init__()
        config = model.config
        self.vision_tower = model.model.vision_tower.requires_grad_(True)
        self.pixel_decoder = model.pixel_decoder
        self.predictor = model.predictor
        self.criterion = model.criterion
        self.query_feat = nn.Embedding(config.num_queries, config.hidden_dim)
        self.class_embed = nn.Parameter(torch.randn(classes + 1, config.hidden_dim) * config.hidden_dim**-0.5)

    def forward(self, batch: Batch) -> list[Prediction]:
        """Predictions of every layer; classes in the data set's order, background last."""
        mask_features, multi_scale = self.pixel_decoder(self.vision_tower(batch["pixel_values"]))
        B = len(batch["pixel_values"])
        predictions: list[Prediction] = self.predictor(
            multi_scale,
            mask_features,
            self.query_feat.weight.expand(B, -1, -1),
            class_embeddings=self.class_embed.expand(B, -1, -1),
        )
        return predictions

    def loss(self, batch: Batch) -> Tensor:
        """The criterion's total, with labels brought back from the shuffled order."""
        labels = [order[label] for order, label in zip(batch["class_order"], batch["class_labels"], strict=True)]
        losses = self.criterion(self(batch), batch["mask_labels"], labels, batch["random_keys"])
        return torch.stack([*losses.values()]).sum()


@torch.no_grad()
def score(model: Mask2Former, data: PanopticData, loader: DataLoader[Any]) -> dict[str, float]:
    """Panoptic quality on the towers' own validation images, in percent."""
    model.eval()
    scorer = PanopticScorer(data)
    for batch, questions in loader:
        final = model(batch)[-1]
        side = (batch["pixel_values"].shape[-2], batch["pixel_values"].shape[-1])
        for row, asked in enumerate(questions):
            example = asked.example
            masks = resize_masks(final.masks[row], example.image_size, side, example.original_size)
            scorer.count(asked, scorer.answer(asked, final, row, masks))
    model.train()
    return scorer.metric.compute()


def pretrain(swin_type: str, steps: int, batch_size: int, learning_rate: float, images: int, folder: Path) -> None:
    """Trains one tower and writes ``model.safetensors`` (float16) into its folder."""
    set_seed(0)
    psalm, tokenizer = build_model(BUILTIN, BUILTIN, swin_type, random_weights=True)
    root = ensure_builtin(seed=TOWER_DATA_SEED, train_images=images)
    prompts = PromptBuilder(tokenizer)
    train, val = PanopticData(root, "train"), PanopticData(root, "val")
    size = psalm.config.image_size
    model = Mask2Former(psalm, len(train.classes)).train()
    collator = Collator(tokenizer.pad_token_id)
    schedule = TrainingSchedule({"panoptic": create_examples(train, prompts, size)}, 0, steps, batch_size)
    batches = DataLoader(schedule, batch_size, collate_fn=collator)
    evaluation = Evaluation(create_examples(val, prompts, size))
    places = list(range(len(evaluation)))
    validation = make_loader(evaluation, [places[start : start + 16] for start in places[::16]], collator)

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    started = time.monotonic()
    for step, batch in enumerate(batches, start=1):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 100 == 0 or step == steps:
            seconds = (time.monotonic() - started) / step
            logger.info("step %d of %d: loss %.3f, %.2f s per step", step, steps, loss.item(), seconds)
        if step % 500 == 0 or step == steps:
            logger.info("%s", {name: round(value, 1) for name, value in score(model, val, validation).items()})
            save(model, folder / WEIGHTS_FILE)


def save(model: Mask2Former, path: Path) -> None:
    """Writes backbone, pixel decoder and predictor under Detectron2's names, in float16."""
    predictor = {k: v for k, v in model.predictor.state_dict().items() if not k.startswith(PSALM_ONLY)}
    parts = {
        "backbone.": swin_to_detectron2(model.vision_tower.state_dict()),
        "sem_seg_head.pixel_decoder.": pixel_decoder_to_detectron2(model.pixel_decoder.state_dict()),
        "sem_seg_head.predictor.": predictor,
    }
    tensors = {
        prefix + name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for prefix, state in parts.items()
        for name, tensor in state.items()
        if not name.endswith("relative_position_index")
    }
    save_file(tensors, path, metadata={"format": "pt"})
    logger.info("%s: %d tensors, %.2f MB", path, len(tensors), path.stat().st_size / 1e6)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train a toy vision tower on built-in images of another seed.")
    parser.add_argument("--swin_type", choices=("base", "large"), required=True, help="Which toy tower to train.")
    parser.add_argument("--steps", type=int, default=2500, help="Optimizer steps.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images per step.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Peak of the one-cycle schedule.")
    parser.add_argument("--images", type=int, default=2048, help="Training images to draw.")
    parser.add_argument("--output_dir", type=Path, help="Where to write; by default the package's own folder.")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = args.output_dir or BUILTIN_FOLDER / f"swin_{args.swin_type}"
    pretrain(args.swin_type, args.steps, args.batch_size, args.learning_rate, args.images, folder)


if __name__ == "__main__":
    main()
