"""Perplexity by position, and of whole streams."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from needlework.scoring.positions import by_position, whole_streams


def _positions(shards: int = 2, last: int = 300) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    rows = []
    for system in ("b", "a"):
        for shard in range(shards):
            first = 1
            while first < last:
                octave = 2 ** int(math.log2(first))
                width = max(1, octave // 16)
                loss, tokens = draw.uniform(2, 4), int(draw.integers(1, 9))
                rows.append((system, "s", shard, first, first + width, tokens, loss))
                first += width
    names = ["system", "stream", "shard", "first_position", "end_position", "tokens", "loss"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_perplexity_of_a_doubling_and_its_interval():
    table = _positions()
    result = by_position(table)
    assert result["system"].unique(maintain_order=True).to_list() == ["b", "a"]
    assert result.filter(system="a")["first_position"].to_list() == [2**k for k in range(9)]
    for row in result.iter_rows(named=True):
        start = row["first_position"]
        inside = [
            span
            for span in table.filter(system=row["system"]).iter_rows(named=True)
            if start <= span["first_position"] < 2 * start
        ]
        losses = [span["loss"] for span in inside]
        tokens = [span["tokens"] for span in inside]
        mean = np.average(losses, weights=tokens)
        assert row["loss"] == pytest.approx(mean)
        assert row["perplexity"] == pytest.approx(math.exp(mean))
        assert (row["tokens"], row["spans"]) == (sum(tokens), len(losses))
        assert row["end_position"] == max(span["end_position"] for span in inside)
        if len(losses) < 4:
            assert row["ci_low"] is row["ci_high"] is None
            continue
        arm = stats.t.ppf(0.975, len(losses) - 1) * np.std(losses, ddof=1) / len(losses) ** 0.5
        assert row["ci_low"] == pytest.approx(math.exp(mean - arm))
        assert row["ci_high"] == pytest.approx(math.exp(mean + arm))


def test_whole_streams_are_weighted_by_tokens():
    chunks = pl.DataFrame(
        {
            "system": ["b", "b", "a"],
            "stream": "s",
            "shard": [0, 1, 0],
            "tokens": [10, 30, 5],
            "tokens_read": [10, 30, 5],
            "text_bytes": [40, 100, None],
            "characters": [35, 70, 10],
            "loss": [1.0, 2.0, 3.0],
            "mode": ["state", "state", "strided"],
            "is_likelihood": [True, True, False],
            "out_of_memory": [0, 2, 0],
            "state_bytes": [7, 9, 0],
        }
    )
    positions = pl.DataFrame(
        {
            "system": ["b", "b", "a"],
            "stream": "s",
            "shard": 0,
            "first_position": [1, 16, 1],
            "end_position": [2, 17, 2],
            "tokens": [30, 10, 5],
            "loss": [1.0, 2.0, 3.0],
        }
    )
    result = whole_streams(chunks, positions).to_dicts()
    assert [row["system"] for row in result] == ["b", "a"]
    assert result[0]["loss"] == pytest.approx(1.75)
    assert result[0]["perplexity"] == pytest.approx(math.exp(1.75))
    assert result[0]["perplexity_second_half"] == pytest.approx(math.exp(2))
    assert (result[0]["shards"], result[0]["chunks"], result[0]["tokens"]) == (2, 2, 40)
    assert (result[0]["state_bytes"], result[0]["out_of_memory"]) == (9, 2)
    bits = (10 * 1.0 + 30 * 2.0) / math.log(2)
    assert result[0]["bits_per_byte"] == pytest.approx(bits / 140)
    assert result[0]["bits_per_character"] == pytest.approx(bits / 105)
    assert result[1]["bits_per_byte"] is None
    assert result[1]["bits_per_character"] == pytest.approx(15 / math.log(2) / 10)
    assert result[1]["mode"] == "strided"
    assert [row["is_likelihood"] for row in result] == [True, False]
    assert result[1]["perplexity"] == pytest.approx(math.exp(3))
