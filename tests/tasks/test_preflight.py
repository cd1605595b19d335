from pathlib import Path

import pytest

from needlework.config.load import load_experiment
from needlework.tasks.preflight import preflight

TINY = Path(__file__).resolve().parents[2] / "resources" / "needlework-tiny"


def experiment(**changes):
    config = {
        "experiment": "trial",
        "models": {"base": {"path": str(TINY)}},
        "systems": {"dense": {"model": "base"}},
        "tasks": {"needle": {"type": "niah_single_1"}, "words": {"type": "cwe"}},
        "lengths": [1024, 2048],
        "samples": 2,
    }
    return load_experiment(config | changes)


def test_what_fits_passes():
    preflight(experiment())
    preflight(experiment(lengths=[9000], length_unit="characters"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lengths": [50, 1024]}, "lengths: 50 is too small for task needle; set "),
        ({"lengths": [1024, 400], "tasks": {"words": {"type": "cwe"}}}, "lengths: 400 is too sma"),
    ],
)
def test_a_length_that_cannot_be_is_told_before_any_work(changes, says):
    with pytest.raises(ValueError, match=rf"^{says}"):
        preflight(experiment(**changes))


def test_the_natural_end_is_told_before_any_work():
    config = {"tasks": {"words": {"type": "cwe"}}, "lengths": [400_000]}
    config["models"] = {"base": {"path": str(TINY), "beyond_positions": True}}
    with pytest.raises(ValueError, match="400000 is beyond the natural end of task words; set 1"):
        preflight(experiment(**config))
