import polars as pl
import pytest

from needlework.scoring.score import score

NEEDLE = pl.Struct({"key": pl.String, "value": pl.String, "depth_percent": pl.Float64})


def samples(count=3, depths=(0.0, 50.0, 100.0)):
    return pl.DataFrame(
        {
            "task": ["niah"] * count,
            "length": [512] * count,
            "sample": list(range(count)),
            "outputs": [[str(100 + i), str(200 + i)] for i in range(count)],
            "value_type": ["numbers"] * count,
            "needles": [
                [
                    {"key": "asked", "value": str(100 + i), "depth_percent": depth},
                    {"key": "other", "value": "7", "depth_percent": 33.0},
                ]
                for i, depth in zip(range(count), depths, strict=True)
            ],
        },
        schema_overrides={"needles": pl.List(NEEDLE)},
    )


def predictions(texts, order=None):
    rows = order or range(len(texts))
    return pl.DataFrame(
        {
            "system": ["dense"] * len(texts),
            "task": ["niah"] * len(texts),
            "length": [512] * len(texts),
            "sample": list(rows),
            "prediction": texts,
        }
    )


def test_scores_pair_by_sample_whatever_the_order_of_rows():
    table = score(samples(), predictions(["102 202", "100", "nothing"], order=[2, 0, 1]))
    assert table.columns == [
        *("system", "task", "length", "sample", "depth_percent", "all", "part", "exact")
    ]
    assert table.rows() == [
        ("dense", "niah", 512, 2, 100.0, 1.0, 1.0, 1.0),
        ("dense", "niah", 512, 0, 0.0, 0.5, 1.0, 0.0),
        ("dense", "niah", 512, 1, 50.0, 0.0, 0.0, 0.0),
    ]


def test_a_task_without_needles_has_no_depth():
    empty = samples().with_columns(needles=pl.lit([], dtype=pl.List(NEEDLE)))
    assert score(empty, predictions(["1", "2", "3"]))["depth_percent"].to_list() == [None] * 3
    untyped = samples().with_columns(needles=pl.lit(None))
    assert score(untyped, predictions(["1", "2", "3"]))["depth_percent"].to_list() == [None] * 3


@pytest.mark.parametrize(
    ("table", "answers", "message"),
    [
        (samples(), predictions(["1", "2"]), "^samples: .*sample 2 has no partner in the predic"),
        (samples(2, (0, 1)), predictions(["1", "2", "3"]), "^predictions: .*sample 2 has no partn"),
        (samples(), predictions(["1", "2", "3"], [0, 1, 1]), "^predictions: .*sample 1 is there m"),
        (pl.concat([samples(), samples()]), predictions(["1", "2", "3"]), "^samples: .*more than"),
        (samples(), predictions(["1", None, "3"]), "^predictions: .*sample 1 has no prediction"),
        (samples().clear(), predictions(["1"]), "^samples: has no rows"),
        (samples().drop("outputs"), predictions(["1"]), "^samples: lacks the column 'outputs'"),
        (
            samples().with_columns(outputs=pl.lit([], dtype=pl.List(pl.String))),
            predictions(["1", "2", "3"]),
            "^samples: .*sample 0 has no reference",
        ),
        (
            samples().with_columns(value_type=pl.lit("dates")),
            predictions(["1", "2", "3"]),
            "^samples: task niah, length 512, sample 0: value_type 'dates'",
        ),
    ],
)
def test_bad_tables_are_one_clear_line(table, answers, message):
    with pytest.raises(ValueError, match=message) as error:
        score(table, answers)
    assert "\n" not in str(error.value)
