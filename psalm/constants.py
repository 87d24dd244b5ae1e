"""Task names, sentinel token ids and special tokens shared by the data and the model.

A sentinel stands in ``input_ids`` where the model later puts embeddings that no tokenizer knows: image features, seg
queries, class names, regions, expressions. The ids and strings are the interface of PSALM's published weights.
"""

IGNORE_INDEX = -100

PANOPTIC = "panoptic"
SEMANTIC = "semantic"
INSTANCE = "instance"
REFERRING = "referring"
REGION = "region"
CROSS_IMAGE = "cross_image"

TASKS = (PANOPTIC, SEMANTIC, INSTANCE, REFERRING, REGION, CROSS_IMAGE)
CLASS_TASKS = (PANOPTIC, SEMANTIC, INSTANCE)
"""Tasks whose prompt lists the names of classes."""
REGION_TASKS = (REGION, CROSS_IMAGE)
"""Tasks whose prompt points at regions of an image; in ``cross_image`` another one than the one that is segmented."""

IMAGE_TOKEN_INDEX = -200
SEG_TOKEN_INDEX = -201
CLS_TOKEN_INDEX = -202
REGION_TOKEN_INDEX = -203
REFER_TOKEN_INDEX = -204
IMAGE1_TOKEN_INDEX = -205
"""The target image of ``cross_image``, whose prompt image stands at ``<image>``."""

SENTINELS: dict[str, int] = {
    "<image>": IMAGE_TOKEN_INDEX,
    "<seg>": SEG_TOKEN_INDEX,
    "<cls>": CLS_TOKEN_INDEX,
    "<region>": REGION_TOKEN_INDEX,
    "<refer>": REFER_TOKEN_INDEX,
    "<image1>": IMAGE1_TOKEN_INDEX,
}

PROMPT_TOKEN_INDEX: dict[str, int] = {
    **dict.fromkeys(CLASS_TASKS, CLS_TOKEN_INDEX),
    **dict.fromkeys(REGION_TASKS, REGION_TOKEN_INDEX),
    REFERRING: REFER_TOKEN_INDEX,
}
"""What stands in a task's prompt for what is asked: a class, a region, an expression."""

SEG_TOKEN = "[SEG]"
"""Closes every class name and expression; added to the tokenizer once."""

BACKGROUND_CLASS = "background"
"""The last class of every list of class names: no object."""
