"""Opening tokenizers, and the token that ends a text."""

import json
import shutil

import pytest
from support.paths import TINY
from transformers import AutoTokenizer

from needlework.tasks.prompts.tokenizer import (
    end_token_id,
    open_tokenizer,
    special_tokens,
    start_ids,
)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no tokenizer.json; write the"), ("{", "cannot read its tokenizer.json: ")],
)
def test_a_folder_without_a_valid_tokenizer_is_rejected(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        open_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")


def test_end_token_comes_from_the_tokenizer_config(tmp_path):
    tokenizer = open_tokenizer(TINY)
    assert end_token_id(TINY) == tokenizer.token_to_id("</s>")
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<s>"}}))
    assert end_token_id(tmp_path) == tokenizer.token_to_id("<s>")
    for content, message in (
        ("{}", "eos_token is None, which the tokenizer does not have; write one"),
        (
            '{"eos_token": "<end>"}',
            "eos_token is '<end>', which the tokenizer does not have; write one",
        ),
        ("{", "cannot be read: Expecting"),
        ("[]", "cannot be read: 'list' object"),
    ):
        config.write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            end_token_id(tmp_path)
        assert str(caught.value).startswith(str(config))


@pytest.mark.parametrize("decoder", [{}, {"added_tokens_decoder": {}}])
def test_special_tokens_are_those_of_transformers(tmp_path, decoder):
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    more = {"bos_token": {"content": "<s>"}, "eos_token": "<pad>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(more))
    theirs = AutoTokenizer.from_pretrained(tmp_path).special_tokens_map
    assert special_tokens(tmp_path) == theirs
    assert ("bos_token" in theirs) == (not decoder)


def test_bos_of_streams(tmp_path):
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    bos = open_tokenizer(TINY).token_to_id("<s>")
    assert start_ids(TINY, None, "none") == []
    assert start_ids(TINY, None, "first") is None
    assert start_ids(TINY, None, "each_window") == [bos]
    with pytest.raises(ValueError, match="write bos: none"):
        start_ids(tmp_path, None, "each_window")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert start_ids(tmp_path, None, "each_window") == [bos]
