"""A valid experiment file, and checks of the errors that edits to it cause."""

from pathlib import Path
from typing import Any

import pytest

from needlework.config.experiment import Experiment
from needlework.config.parsing.load import read_experiment

EXPERIMENT = """\
experiment: trial
seed: 7

models:
  base: {path: checkpoint}
  long:
    base: base
    allow_extrapolation: true
    finetune: {data: keys, sequence_length: 256, learning_rate: 1.0e-3}
  infini:
    base: base
    attention: {type: infini, segment_length: 64}
    finetune:
      data: keys
      sequence_length: 256

finetune_data:
  keys: {type: passkey, length: 256, digits: [3, 4]}
  needles: {type: task, task: needle, length: [192, 256]}

gates:
  own: {model: base, block_size: 32, distill: {data: [keys, needles], sequence_length: 300}}

systems:
  dense: {model: base}
  seer: {model: base, attention: {type: seer, gates: own, block_size: 32, density: 0.2}}
  given: {model: base, attention: {type: seer, gates: saved, block_size: 64, density: 0.3}}
  walk:
    model: base
    attention: {type: sketchwalk, heads: sum, block_size: 16, density: 0.25}
  infini: {model: infini}
baseline: dense

tasks:
  passkey: {type: passkey, digits: 5}
  needle: {type: niah_single_1}
lengths: [512, 1024]
depths: [0, 50, 100]
samples: 6
"""

STREAMED = """\
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


def write_checkpoint(folder: Path) -> None:
    """Write the checkpoint of EXPERIMENT, with 1024 positions, and folders of gates, saved and
    released."""
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/config.json").write_text('{"max_position_embeddings": 1024}')
    (folder / "checkpoint/tokenizer.json").write_text("{}")
    stages = '"stages": ["prefill", "decode"]'
    for name, description in {
        "saved": f'{{"block_size": 64, "gate_dim": 128, {stages}}}',
        "half": '{"block_size": 64, "gate_dim": 128, "stages": ["prefill"]}',
        "cut": '{"block',
        "list": "[]",
        "none": f'{{"block_size": 0, "gate_dim": 128, {stages}}}',
        "text": f'{{"block_size": "64", {stages}}}',
        "bool": f'{{"block_size": true, {stages}}}',
        "stageless": '{"block_size": 64}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "gates.json").write_text(description)
        (folder / name / "gates.safetensors").touch()
    for name, pooling, suffix in (
        ("released", "Qproj", "safetensors"),
        ("pickled", "Qproj", "pth"),
        ("foreign", "Qorig", "pth"),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(
            '{"seerattn_gate_block_size": 64, "seerattn_gate_hidden_size": 128, '
            '"seerattn_k_seq_pooling_type": "Kmaxminavg", '
            f'"seerattn_q_head_pooling_type": "{pooling}"}}'
        )
        (folder / name / f"attn_gate_weights.{suffix}").touch()


def read(text: str) -> Experiment:
    """Read `text` as trial.yaml in the working directory."""
    Path("trial.yaml").write_text(text)
    return read_experiment("trial.yaml")


def error_of(text: str) -> str:
    """The error of reading `text` as trial.yaml, one line for each problem."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(text)
    return str(caught.value)


def case(old: str, new: str, message: str, at: str = "") -> Any:
    """A parameter set for `check_error`."""
    return pytest.param(old, new, message, at, id=message)


def check_error(old: str, new: str, message: str, at: str) -> None:
    """Replacing `old` by `new` in EXPERIMENT is reported by `message`, on the right line.

    That is the first line that changed, or the one that contains `at`.
    """
    assert EXPERIMENT.count(old) == 1
    text = EXPERIMENT.replace(old, new)
    before, after = EXPERIMENT.splitlines(), text.splitlines()
    if at:
        line = next(i for i, content in enumerate(after) if at in content)
    else:
        line = next(
            i for i, content in enumerate(after) if i >= len(before) or content != before[i]
        )
    assert error_of(text).startswith(f"trial.yaml:{line + 1}: {message}")
