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


def entry(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, **flags}


ADDED = entry("<|b|>", __type="AddedToken", special=True)
LISTED = {"4": entry("<tool>", single_word=False, special=False), "2": entry("</s>", special=True)}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "</s>"}},
        {"tokenizer_config.json": {"additional_special_tokens": ["<|a|>", ADDED]}},
        {"tokenizer_config.json": {"extra_special_tokens": ["<|a|>", "<|a|>"]}},
        {"tokenizer_config.json": {"added_tokens_decoder": LISTED, "eos_token": "<|im_end|>"}},
        {"special_tokens_map.json": {"bos_token": entry("<|bos|>"), "eos_token": "<|eos|>"}},
        {
            "added_tokens.json": {"<|im_end|>": 12001, "<tool>": 12000, "</s>": 2},
            "tokenizer_config.json": {"eos_token": "<|im_end|>"},
        },
    ],
)
def test_tokens_of_every_file_are_added_as_by_transformers(tmp_path, files):
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **files.get("tokenizer_config.json", {}),
    }
    for name, content in {**files, "tokenizer_config.json": config}.items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    ours = open_tokenizer(tmp_path)
    assert ours.to_str() == theirs.to_str()
    if (end := special_tokens(tmp_path).get("eos_token")) is not None:
        assert end_token_id(tmp_path) == theirs.token_to_id(end)
    text = "It <tool>s <|im_end|> and <|a|><|b|> <|eos|></s>"
    assert ours.encode(text).ids == theirs.encode(text).ids


@pytest.mark.slow
def test_a_vocabulary_without_a_tokenizer_json_is_converted(tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<|endoftext|>": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    ids = AutoTokenizer.from_pretrained(tmp_path)("ab a")["input_ids"]
    assert open_tokenizer(tmp_path).encode("ab a").ids == ids == [2, 3, 0]
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match="json, and transformers cannot make one"):
        open_tokenizer(shutil.copytree(tmp_path, tmp_path / "broken"))
