import pytest
import yaml
from support.experiment_file import STREAMED

from needlework.config.parsing.load import load_experiment


@pytest.mark.usefixtures("experiment_folder")
def test_systems_inherit_the_settings_of_the_stream():
    experiment = load_experiment(yaml.safe_load(STREAMED))
    stream = experiment.streams["text"]
    dense, near, walk = (stream.read_by(name) for name in ("dense", "near", "walk"))
    assert (dense.chunk_size, dense.overlap, dense.model) == (256, 128, None)
    assert (near.chunk_size, near.overlap, near.attention.type) == (256, 2, "window")
    assert (walk.chunk_size, walk.overlap) == (256, 0)
    assert experiment.stream_systems() == ["near"]
