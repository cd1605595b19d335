"""Positions of a checkpoint with rotary scaling."""

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from needlework.config.rope import RopeScaling, positions_of
from needlework.config.streams import Stream

YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        (None, 512),
        ({"rope_type": "default", "rope_theta": 1e4}, 512),
        ({**YARN, "original_max_position_embeddings": 512}, 2048),
        ({**YARN, "original_max_position_embeddings": 128}, 512),
        ({"type": "yarn", "factor": 4.0}, 2048),
        ({"type": "linear", "factor": 2.0}, 1024),
        ({"type": "linear", "factor": 2.0, "original_max_position_embeddings": 256}, 512),
        ({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "dynamic", "factor": 8.0}, 4096),
        ({"rope_type": "dynamic", "factor": 8.0, "original_max_position_embeddings": 64}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, 512),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_positions_follow_the_scaling_of_the_checkpoint(key, rope, positions):
    config = {"max_position_embeddings": 512, key: rope}
    assert positions_of(config) == positions
    assert positions_of({"text_config": config}) == positions


def test_the_original_length_can_be_beside_the_scaling():
    config = {"max_position_embeddings": 512, "original_max_position_embeddings": 256}
    assert positions_of({**config, "rope_scaling": YARN}) == 1024
    inside = {**YARN, "original_max_position_embeddings": 512}
    assert positions_of({**config, "rope_scaling": inside}) == 1024
    assert positions_of({**config, "rope_scaling": YARN | {"rope_type": "linear"}}) == 1024


def test_old_and_new_keys_are_read_as_by_transformers():
    old, new = {"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}
    config = {"max_position_embeddings": 512, "rope_scaling": old, "rope_parameters": new}
    theirs = LlamaConfig(**config).rope_parameters
    assert (theirs["rope_type"], theirs["factor"]) == ("linear", 2.0)
    assert positions_of(config) == 1024
    both = {"type": "linear", "rope_type": "yarn", "factor": 4.0}
    assert LlamaConfig(rope_scaling=dict(both)).rope_parameters["rope_type"] == "yarn"
    both["original_max_position_embeddings"] = 128
    assert positions_of({"max_position_embeddings": 512, "rope_scaling": both}) == 512


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_transformers_scales_from_the_positions_that_a_checkpoint_states(kind):
    shape = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 64}
    plain = LlamaRotaryEmbedding(LlamaConfig(**shape))
    scaled = LlamaConfig(**shape, rope_scaling={"rope_type": kind, "factor": 4.0})
    x, ends = torch.zeros(1, 1, 32), torch.tensor([[255, 63]])
    cos, _ = LlamaRotaryEmbedding(scaled)(x, ends)
    if kind == "linear":
        # Position 4n turns as far as n does without scaling.
        assert torch.allclose(cos[0, 0], plain(x, ends / 4)[0][0, 0])
    else:
        within, _ = LlamaRotaryEmbedding(scaled)(x, ends[:, 1:])
        assert torch.equal(within[0, 0], plain(x, ends)[0][0, 1])
        assert not torch.allclose(cos[0, 1], within[0, 0])


def test_a_scaling_of_the_user_replaces_that_of_the_checkpoint():
    config = {"max_position_embeddings": 512, "rope_scaling": {**YARN, "factor": 2.0}}
    assert positions_of(config, RopeScaling(rope_type="yarn", factor=8.0)) == 4096
    assert positions_of(config, RopeScaling(rope_type="default")) == 512


def test_an_incomplete_scaling_names_the_missing_key():
    with pytest.raises(ValidationError, match="yarn needs factor"):
        RopeScaling(rope_type="yarn")


def test_home_folders_in_paths_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Stream(path="~/text.txt").path == str(tmp_path / "text.txt")
