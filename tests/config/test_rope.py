"""Positions of a checkpoint with rotary scaling."""

import pytest
from pydantic import ValidationError

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
        ({"rope_type": "dynamic", "factor": 8.0}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, 512),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_positions_follow_the_scaling_of_the_checkpoint(key, rope, positions):
    config = {"max_position_embeddings": 512, key: rope}
    assert positions_of(config) == positions
    assert positions_of({"text_config": config}) == positions


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
