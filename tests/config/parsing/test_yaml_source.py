import pytest
from support.experiment_file import case, check_error

from needlework.config.parsing.load import read_experiment


@pytest.mark.usefixtures("experiment_folder")
@pytest.mark.parametrize(
    ("old", "new", "message", "at"),
    [
        case(
            "baseline: dense",
            "  dense: {model: long}\nbaseline: dense",
            "systems.dense: duplicate key, first on line 25; rename or remove one of them",
        ),
        case(
            "samples: 6",
            "samples: 6\nseed: 8",
            "seed: duplicate key, first on line 2; rename or remove one of them",
        ),
        case(
            "[512, 1024]",
            "[512, 1024",
            "invalid YAML: expected ',' or ']', but got ':'; fix this line",
            at="depths: [0, 50, 100]",
        ),
        case(
            "samples: 6",
            "\tsamples: 6",
            "invalid YAML: found character '\\t' that cannot start any token; fix this line",
        ),
        case(
            "samples: 6",
            "samples: !!python/none",
            "invalid YAML: could not determine a constructor for the tag",
        ),
    ],
)
def test_invalid_yaml_and_duplicate_keys_are_located(old, new, message, at):
    check_error(old, new, message, at)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"experiment: \xff\n", "trial.yaml: not UTF-8 text; save it as UTF-8"),
        (b"a: \x01\n", "trial.yaml: invalid YAML: contains control characters; remove them"),
        (
            b"? [a, b]\n: c\n",
            "trial.yaml:1: invalid YAML: found unhashable key; fix this line",
        ),
    ],
)
def test_unreadable_content_is_explained(experiment_folder, content, message):
    (experiment_folder / "trial.yaml").write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_experiment("trial.yaml")
    assert str(caught.value) == message


def test_a_missing_file_is_named(experiment_folder):
    with pytest.raises(
        ValueError, match=r"^none\.yaml: cannot be read: No such file or directory$"
    ):
        read_experiment("none.yaml")
