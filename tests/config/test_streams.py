import re

import pytest
import yaml

from needlework.config.parsing.load import load_experiment

GOOD = """\
experiment: trial
models:
  base: {path: checkpoint}
systems:
  dense: {model: base}
  walk: {model: base, attention: {type: sketchwalk}}
tasks:
  passkey: {type: passkey}
lengths: [512]
streams:
  text:
    tokens: 3000
    chunk_size: 256
    systems:
      dense: {overlap: 128}
      near: {model: base, attention: {type: window, dense_layers: 0}, overlap: 2}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text('{"max_position_embeddings": 1024}')
    (tmp_path / "checkpoint/tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def test_systems_read_as_the_stream_says_but_for_their_own():
    experiment = load_experiment(yaml.safe_load(GOOD))
    stream = experiment.streams["text"]
    dense, near, walk = (stream.read_by(name) for name in ("dense", "near", "walk"))
    assert (dense.chunk_size, dense.overlap, dense.model) == (256, 128, None)
    assert (near.chunk_size, near.overlap, near.attention.type) == (256, 2, "window")
    assert (walk.chunk_size, walk.overlap) == (256, 0)
    assert experiment.stream_systems() == ["near"]


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        (
            "overlap: 128",
            "overlap: 256",
            "streams.text.systems.dense.overlap = 256: of 256 is not below chunk_size 256; "
            "write at most 255",
        ),
        (
            "dense: {overlap: 128}",
            "dence: {overlap: 128}",
            "streams.text.systems.dence: names no system; did you mean `dense`? write one of "
            "dense, walk, or give it a model",
        ),
        (
            "near: {model: base",
            "near: {model: bas",
            "streams.text.systems.near.model = 'bas': names no model; did you mean `base`?",
        ),
        (
            "dense: {overlap: 128}",
            "dense: {overlap: 128, model: base}",
            "streams.text.systems.dense.model = 'base': is that of the system; leave it out",
        ),
        (
            "type: window, dense_layers: 0",
            "type: infini",
            "streams.text.systems.near.attention: is for a system of the stream's own, put on",
        ),
        (
            "dense: {overlap: 128}",
            "dense: {}",
            "streams.text.tokens = 3000: may go beyond the 1024 positions of model `base`, whose "
            "state system `dense` carries; write at most 1024, an overlap for it, or "
            "`allow_extrapolation: true` in models.base",
        ),
        (
            "tokens: 3000",
            "path: text.txt",
            "streams.text.path = 'text.txt': no such file or folder; name an existing one",
        ),
        (
            "    tokens: 3000\n",
            "",
            "streams.text: generated text has no end; write tokens, such as 50000",
        ),
        (
            "dense: {overlap: 128}",
            "dense: {overlap: 128}\n      last: {model: base, attention: {type: sketchwalk, "
            "dense_last_rows: 2}}",
            "streams.text.systems.last: `dense_last_rows` of system `last` counts on the text's "
            "end, which a stream does not know; write 0 or leave it out there, or set an overlap",
        ),
        ("tokens: 3000", "token: 3000", "streams.text.token = 3000: unknown key; did you mean"),
    ],
)
def test_a_wrong_stream_is_one_line(right, wrong, says):
    assert GOOD.count(right) == 1
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        load_experiment(yaml.safe_load(GOOD.replace(right, wrong)))


def test_state_may_go_beyond_positions_where_that_is_meant():
    text = GOOD.replace("dense: {overlap: 128}", "dense: {}")
    text = text.replace("{path: checkpoint}", "{path: checkpoint, allow_extrapolation: true}")
    assert load_experiment(yaml.safe_load(text)).streams["text"].tokens == 3000
