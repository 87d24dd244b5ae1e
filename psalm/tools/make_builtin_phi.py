"""Writes the toy language model's folder: a small Phi architecture and a byte-level BPE tokenizer.

    python -m psalm.tools.make_builtin_phi [--output FOLDER]

The tokenizer is learnt from the instructions, the class names of COCO and the built-in data, and the words of referring
expressions below: nothing is read, nothing is drawn, so the same files come out every time. Being byte-level it encodes
any text. The folder holds no weights: they are drawn anew at every training's seed.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PhiConfig, PreTrainedTokenizerFast

from psalm.constants import BACKGROUND_CLASS, CROSS_IMAGE, SEG_TOKEN, TASKS
from psalm.data.prompts import END_OF_TEXT, SENTINEL_PATTERN, prompt_text

OUTPUT = Path(__file__).resolve().parents[1] / "builtin" / "phi"
PAD_TOKEN = "<|pad|>"
VOCABULARY = 1280
MODEL_MAX_LENGTH = 4096

COCO_NAMES = """\
person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|bench|\
bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|\
sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|\
bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table|\
toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|scissors|\
teddy bear|hair drier|toothbrush|banner|blanket|bridge|cardboard|counter|curtain|door-stuff|floor-wood|flower|fruit|\
gravel|house|light|mirror-stuff|net|pillow|platform|playingfield|railroad|river|road|roof|sand|sea|shelf|snow|stairs|\
tent|towel|wall-brick|wall-stone|wall-tile|wall-wood|water-other|window-blind|window-other|tree-merged|fence-merged|\
ceiling-merged|sky-other-merged|cabinet-merged|table-merged|floor-other-merged|pavement-merged|mountain-merged|\
grass-merged|dirt-merged|paper-merged|food-other-merged|building-other-merged|rock-merged|wall-other-merged|rug-merged"""

WORDS = """\
the a an of in on at to with and or not is are left right top bottom upper lower middle center above below behind \
front next near between inside outside first second third fourth last one two three four five every each all other \
same large small big little tall short long round wide dark bright light red green blue yellow purple orange white \
black brown gray grey pink cyan circle square triangle star ring cross shape object thing area surface ground \
striped dotted plain checkered wavy spotted striped circle dotted circle plain square checkered square grass water \
sand brick bricks stone wood sky wall floor sea forest man woman boy girl child people player standing sitting \
holding wearing playing shirt jacket hat hand head side corner biggest smallest largest closest farthest leftmost \
rightmost touching covered partly hidden"""

PUBLISHED_TASKS = tuple(task for task in TASKS if task != CROSS_IMAGE)
"""Whose instructions the tokenizer has seen: those of PSALM's published weights."""


def corpus() -> list[str]:
    """The texts that the merges are learnt from; names stand alone and after a blank, as prompts have them."""
    names = [*COCO_NAMES.split("|"), BACKGROUND_CLASS]
    words = WORDS.split()
    prompts = [SENTINEL_PATTERN.sub("", prompt_text(task, classes=2, regions=2)) for task in PUBLISHED_TASKS]
    return prompts + [text for word in [*names, *words] for text in (word, f" {word}")]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer, with the end of text, padding and [SEG] as tokens of their own."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, PAD_TOKEN, SEG_TOKEN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PAD_TOKEN,
        additional_special_tokens=[SEG_TOKEN],
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> PhiConfig:
    """The toy architecture; positions reach beyond COCO's 133 names, its queries and a large image."""
    return PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MODEL_MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write(output: Path) -> None:
    """Writes config.json and the tokenizer's files."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(output)
    config = {"architectures": ["PhiForCausalLM"], **make_config(tokenizer).to_diff_dict()}
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the toy language model's architecture and tokenizer.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write (default: the package's own)")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
