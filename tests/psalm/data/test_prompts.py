"""Prompts are the interface of the published weights: exact strings, encoded piece by piece."""

import pytest

from psalm.constants import CLS_TOKEN_INDEX, IMAGE_TOKEN_INDEX, SEG_TOKEN, SEG_TOKEN_INDEX, SENTINELS
from psalm.data.prompts import PromptBuilder, prompt_text


@pytest.mark.golden("prompts")
def test_golden_prompts(golden):
    assert golden.meta["sentinels"] == SENTINELS
    for task, text in golden.meta["prompts"].items():
        assert prompt_text(task, golden.meta["classes"], golden.meta["regions"]) == text, task


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'depth': must be one of panoptic,"):
        prompt_text("depth")


def test_sentinels_become_ids_and_pieces_are_encoded_alone(tokenizer):
    ids = PromptBuilder(tokenizer).encode("a <cls>, b<seg>").tolist()
    expected = [*tokenizer.encode("a "), CLS_TOKEN_INDEX, *tokenizer.encode(", b"), SEG_TOKEN_INDEX]
    assert ids == expected


def test_panoptic_prompt_shows_every_class_and_background(tokenizer):
    ids = PromptBuilder(tokenizer).input_ids("panoptic", classes=5).tolist()
    assert (ids.count(CLS_TOKEN_INDEX), ids.count(IMAGE_TOKEN_INDEX), ids.count(SEG_TOKEN_INDEX)) == (5, 1, 1)
    assert ids[-1] == tokenizer.eos_token_id


def test_region_prompt_holds_seg_as_one_text_token(tokenizer):
    builder = PromptBuilder(tokenizer)
    assert builder.input_ids("region", regions=2).tolist().count(builder.seg_token_id) == 1


def test_class_names_end_with_seg_and_background_is_last(tokenizer):
    builder = PromptBuilder(tokenizer)
    ids = builder.class_ids(["striped circle", "grass"])
    assert [tokenizer.decode(row) for row in ids] == [f"{n}[SEG]" for n in ("striped circle", "grass", "background")]
    assert all(row[-1] == builder.seg_token_id for row in ids)


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
