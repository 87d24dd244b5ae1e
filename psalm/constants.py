"""Sentinel token ids and special tokens shared by the data and the model.

A sentinel stands in ``input_ids`` where the model later puts embeddings that no tokenizer knows: image features, seg
queries, class names, regions, expressions. The ids and strings are the interface of PSALM's published weights.
"""

IGNORE_INDEX = -100

IMAGE_TOKEN_INDEX = -200
SEG_TOKEN_INDEX = -201
CLS_TOKEN_INDEX = -202
REGION_TOKEN_INDEX = -203
REFER_TOKEN_INDEX = -204

SENTINELS: dict[str, int] = {
    "<image>": IMAGE_TOKEN_INDEX,
    "<seg>": SEG_TOKEN_INDEX,
    "<cls>": CLS_TOKEN_INDEX,
    "<region>": REGION_TOKEN_INDEX,
    "<refer>": REFER_TOKEN_INDEX,
}

SEG_TOKEN = "[SEG]"
"""Closes every class name and expression; added to the tokenizer once."""

BACKGROUND_CLASS = "background"
"""The last class of every list of class names: no object."""

PANOPTIC_VOID_COLOR = 0
"""Segment id of an unlabelled pixel in COCO panoptic PNGs."""
