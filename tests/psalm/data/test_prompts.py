"""Prompts are the interface of the published weights: exact strings, encoded piece by piece."""

import pytest
import torch

from psalm.constants import (
    CLASS_TASKS,
    CLS_TOKEN_INDEX,
    IMAGE1_TOKEN_INDEX,
    IMAGE_TOKEN_INDEX,
    PROMPT_TOKEN_INDEX,
    REGION_TOKEN_INDEX,
    SEG_TOKEN,
    SEG_TOKEN_INDEX,
    SENTINELS,
    TASKS,
)
from psalm.data.prompts import PromptBuilder, prompt_text

START = (
    "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
)


@pytest.mark.golden("prompts")
def test_golden_prompts(golden):
    assert golden.meta["sentinels"].items() <= SENTINELS.items()
    for task, text in golden.meta["prompts"].items():
        assert prompt_text(task, golden.meta["classes"], golden.meta["regions"]) == text, task


def test_prompt_of_cross_image_names_the_prompt_image_first():
    """No weights are published for it, so that no golden holds its wording."""
    assert prompt_text("cross_image", regions=2) == (
        f"{START}Based on the regions indicated in Image <image>\nThis is all regions:  <region>, <region>.\n"
        "Please doing Semantic Segmentation on this Image <image1>.\n [/INST] \n[SEG]<seg> <|endoftext|>"
    )


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'depth': must be one of panoptic,"):
        prompt_text("depth")


def test_sentinels_become_ids_and_pieces_are_encoded_alone(tokenizer):
    ids = PromptBuilder(tokenizer).encode("a <cls>, b<seg>").tolist()
    expected = [*tokenizer.encode("a "), CLS_TOKEN_INDEX, *tokenizer.encode(", b"), SEG_TOKEN_INDEX]
    assert ids == expected


@pytest.mark.parametrize("task", CLASS_TASKS)
def test_class_prompts_show_every_class_and_background(prompts, tokenizer, task):
    ids = prompts.input_ids(task, classes=5).tolist()
    assert (ids.count(CLS_TOKEN_INDEX), ids.count(IMAGE_TOKEN_INDEX), ids.count(SEG_TOKEN_INDEX)) == (5, 1, 1)
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("task", TASKS)
def test_prompts_hold_what_is_asked_and_no_other_sentinel(prompts, task):
    sentinels = [token for token in prompts.input_ids(task, classes=4, regions=3).tolist() if token < 0]
    asked = {"referring": 1, "region": 3, "cross_image": 3}.get(task, 4)
    images = [IMAGE_TOKEN_INDEX, IMAGE1_TOKEN_INDEX] if task == "cross_image" else [IMAGE_TOKEN_INDEX]
    assert sorted(sentinels) == sorted([*images, *[PROMPT_TOKEN_INDEX[task]] * asked, SEG_TOKEN_INDEX])


def test_regions_stand_between_the_two_images(prompts):
    ids = prompts.input_ids("cross_image", regions=3).tolist()
    assert (ids.count(IMAGE_TOKEN_INDEX), ids.count(IMAGE1_TOKEN_INDEX)) == (1, 1)
    regions = [place for place, token in enumerate(ids) if token == REGION_TOKEN_INDEX]
    assert len(regions) == 3
    assert ids.index(IMAGE_TOKEN_INDEX) < min(regions)
    assert max(regions) < ids.index(IMAGE1_TOKEN_INDEX) < ids.index(SEG_TOKEN_INDEX)


@pytest.mark.parametrize("task", ["region", "cross_image"])
def test_region_prompts_hold_seg_as_one_text_token(prompts, task):
    assert prompts.input_ids(task, regions=2).tolist().count(prompts.seg_token_id) == 1


def test_class_names_end_with_seg_and_background_is_last(prompts, tokenizer):
    ids = prompts.class_ids(["striped circle", "grass"])
    assert [tokenizer.decode(row) for row in ids] == [f"{n}[SEG]" for n in ("striped circle", "grass", "background")]
    assert all(row[-1] == prompts.seg_token_id for row in ids)


@pytest.mark.parametrize(
    ("expressions", "text"),
    [(["left dog"], " left dog."), (("left dog", "the {cls}, 2nd"), " left dog. the {cls}, 2nd.")],
)
def test_expressions_are_joined_and_end_with_seg(prompts, tokenizer, expressions, text):
    ids = prompts.expression_ids(expressions)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [*tokenizer.encode(text, add_special_tokens=False), prompts.seg_token_id]


def test_encoding_again_gives_the_same(prompts):
    first = prompts.input_ids("region", regions=2).tolist()
    prompts.input_ids("region", regions=3)
    assert prompts.input_ids("region", regions=2).tolist() == first


def test_tokenizer_without_seg_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")), unk_token="?"
    )
    with pytest.raises(ValueError, match=r"must have the token \[SEG\]"):
        PromptBuilder(plain)
    plain.add_tokens([SEG_TOKEN])
    with pytest.raises(ValueError, match="must have a padding token"):
        PromptBuilder(plain)
