"""Scores of predictions against samples."""

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
                    {"key": "first", "value": str(100 + i), "depth_percent": depth},
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


def test_scores_pair_by_sample_in_any_order_of_rows():
    answers = predictions(["102 202", "100", "nothing"], order=[2, 0, 1])
    table = score(samples(), answers, "all", True)
    assert table.columns == [
        *("system", "task", "length", "sample", "depth_percent", "all", "part", "exact"),
        *("rouge_l", "token_f1", "prefix_ratio"),
        *("needle_keys", "needle_depths", "needle_found", "outcome"),
    ]
    keys = ["first", "other"]
    assert table["prefix_ratio"].null_count() == 3
    assert table.drop("prefix_ratio").rows() == [
        (
            "dense",
            "niah",
            512,
            2,
            100,
            1,
            1,
            1,
            None,
            None,
            keys,
            [100, 33],
            [True, True],
            "answer",
        ),
        ("dense", "niah", 512, 0, 0, 0.5, 1, 0, None, None, keys, [0, 33], [True, False], "answer"),
        (
            "dense",
            "niah",
            512,
            1,
            50,
            0,
            0,
            0,
            None,
            None,
            keys,
            [50, 33],
            [False, False],
            "answer",
        ),
    ]


def test_under_part_the_first_needle_is_found_if_any_output_is():
    table = score(samples(), predictions(["200", "201 101", "0"]), "part", True)
    assert table["needle_keys"].to_list() == [["first"]] * 3
    assert table["needle_depths"].to_list() == [[0.0], [50.0], [100.0]]
    assert table["needle_found"].to_list() == [[True], [True], [False]]
    assert table["part"].to_list() == [1, 1, 0]
    assert table["all"].to_list() == [0.5, 1, 0]
    assert table["exact"].to_list() == [1, 1, 0]


def test_needles_are_the_references_of_metric_all():
    single = samples().with_columns(pl.col("outputs").list.head(1))  # the other is a distractor
    table = score(single, predictions(["100 7", "7", "102"]), "all", True)
    assert table["needle_depths"].to_list() == [[0.0], [50.0], [100.0]]
    for row in score(samples(), predictions(["100", "x", "202 102"]), "all", True).to_dicts():
        assert sum(row["needle_found"]) / len(row["needle_found"]) == row["all"]


def test_free_answers_have_rouge_scores():
    text = samples().with_columns(value_type=pl.lit("text"), outputs=pl.lit(["red fig", "figs"]))
    table = score(text, predictions(["red", "Figs!", "fig red"]), "part", True)
    assert table["token_f1"].to_list() == pytest.approx([2 / 3, 1, 1])
    assert table["rouge_l"].to_list() == pytest.approx([2 / 3, 1, 1 / 2])
    assert table["exact"].to_list() == [0, 1, 0]


def test_reasoning_is_not_scored():
    table = score(samples(1, [0.0]), predictions(["<think>100 or 200</think>\n200"]), "all", True)
    assert table["all"].item() == 0.5
    assert table["needle_found"].to_list() == [[False, True]]
    unfinished = score(samples(1, [0.0]), predictions(["<think>100 and 200"]), "all", True)
    assert unfinished["part"].item() == 0


def test_a_task_without_needles_has_no_depth():
    empty = samples().with_columns(needles=pl.lit([], dtype=pl.List(NEEDLE)))
    untyped = samples().with_columns(needles=pl.lit(None))
    answers, schemas = predictions(["1", "2", "3"]), set()
    for table, has_depths in ((empty, True), (untyped, True), (samples(), False)):
        scores = score(table, answers, "all", has_depths)
        schemas.add(str(scores.schema))
        assert scores["depth_percent"].to_list() == [None] * 3
        for column in ("needle_keys", "needle_depths", "needle_found"):
            assert scores[column].to_list() == [[]] * 3
    assert schemas == {str(score(samples(), answers, "part", True).schema)}


@pytest.mark.parametrize(
    ("table", "answers", "message"),
    [
        (samples(), predictions(["1", "2"]), "^samples: .*sample 2 has no partner in the predic"),
        (samples(2, (0, 1)), predictions(["1", "2", "3"]), "^predictions: .*sample 2 has no partn"),
        (
            samples(),
            predictions(["1", "2", "3"], [0, 1, 1]),
            "^predictions: .*duplicate row for .*sample 1",
        ),
        (
            pl.concat([samples(), samples()]),
            predictions(["1", "2", "3"]),
            "^samples: duplicate row for",
        ),
        (samples(), predictions(["1", None, "3"]), "^predictions: .*sample 1 has no prediction"),
        (samples().clear(), predictions(["1"]), "^samples: no rows"),
        (samples().drop("outputs"), predictions(["1"]), "^samples: column 'outputs' is missing"),
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
        (
            samples().with_columns(pl.col("needles").list.head(1)),
            predictions(["1", "2", "3"]),
            r"^samples: .*sample 0: has fewer needles \(1\) than outputs \(2\); make the samp",
        ),
    ],
)
def test_errors_are_one_line(table, answers, message):
    with pytest.raises(ValueError, match=message) as error:
        score(table, answers, "all", True)
    assert "\n" not in str(error.value)


def test_the_metric_must_be_all_or_part():
    with pytest.raises(
        ValueError, match=r"^metric 'exact': must be one of all, part, prefix_ratio$"
    ):
        score(samples(), predictions(["1", "2", "3"]), "exact", True)
