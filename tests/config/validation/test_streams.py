import re

import pytest
import yaml
from support.experiment_file import STREAMED

from needlework.config.parsing.load import load_experiment

pytestmark = pytest.mark.usefixtures("experiment_folder")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "overlap: 128",
            "overlap: 256",
            "streams.text.systems.dense.overlap = 256: must be below chunk_size 256; write at "
            "most 255",
        ),
        (
            "dense: {overlap: 128}",
            "dence: {overlap: 128}",
            "streams.text.systems.dence: unknown system; did you mean `dense`? write one of "
            "dense, walk, or set `model` here",
        ),
        (
            "near: {model: base",
            "near: {model: bas",
            "streams.text.systems.near.model = 'bas': unknown model; did you mean `base`?",
        ),
        (
            "dense: {overlap: 128}",
            "dense: {overlap: 128, model: base}",
            "streams.text.systems.dense.model = 'base': is already set under systems; remove it",
        ),
        (
            "type: window, dense_layers: 0",
            "type: infini",
            "streams.text.systems.near.attention: needs `model` next to it",
        ),
        (
            "dense: {overlap: 128}",
            "dense: {}",
            "streams.text.tokens = 3000: may exceed the 1024 positions of model `base`, because "
            "system `dense` carries its state; write at most 1024, set an overlap for it, or set "
            "`allow_extrapolation: true` in models.base",
        ),
        (
            "tokens: 3000",
            "path: text.txt",
            "streams.text.path = 'text.txt': no such file or folder; write an existing path",
        ),
        (
            "    tokens: 3000\n",
            "",
            "streams.text: generated text has no end; set tokens, such as 50000",
        ),
        (
            "dense: {overlap: 128}",
            "dense: {overlap: 128}\n      last: {model: base, attention: {type: sketchwalk, "
            "dense_last_rows: 2}}",
            "streams.text.systems.last: `dense_last_rows` of system `last` depends on where "
            "the text ends, which a stream does not know; set it to 0 or remove it there, or set",
        ),
        ("tokens: 3000", "token: 3000", "streams.text.token = 3000: unknown key; did you mean"),
    ],
)
def test_streams_that_cannot_be_read_are_rejected(old, new, message):
    assert STREAMED.count(old) == 1
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        load_experiment(yaml.safe_load(STREAMED.replace(old, new)))


def test_carried_state_may_exceed_positions_if_the_model_allows_it():
    text = STREAMED.replace("dense: {overlap: 128}", "dense: {}")
    text = text.replace("{path: checkpoint}", "{path: checkpoint, allow_extrapolation: true}")
    assert load_experiment(yaml.safe_load(text)).streams["text"].tokens == 3000
