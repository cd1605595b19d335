"""Opening tokenizers, and the token that ends a text."""

import json
import shutil

import pytest
from support.paths import TINY

from needlework.tasks.prompts.tokenizer import end_token_id, open_tokenizer


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
