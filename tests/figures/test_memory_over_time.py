"""The figure of memory over time."""

import polars as pl

from needlework.figures.memory import memory


def _row(system: str, length: int, sample: int, seconds: float, most: int, gpu: int | None) -> dict:
    points = [
        {"seconds": seconds * part, "resident_bytes": int(most * part), "gpu_bytes": gpu}
        for part in (0.25, 0.5, 1.0)
    ]
    key = {"system": system, "task": "keys", "length": length, "sample": sample}
    times = {"prefill_seconds": 0.6 * seconds, "decode_seconds": 0.4 * seconds}
    return {**key, **times, "memory": points}


def test_it_shows_the_slowest_of_the_longest_prompts(drawn):
    rows = [
        _row("dense", 512, 0, 9.0, 2**30, None),
        _row("dense", 1024, 0, 2.0, 2**30, None),
        _row("dense", 1024, 1, 4.0, 2**30, None),
        _row("window", 1024, 0, 1.0, 2**29, None),
    ]
    texts, marks = drawn(memory(pl.DataFrame(rows)))
    assert "While one prompt of 1,024 tokens was answered: of each system the slowest" in texts
    assert {"Resident memory (MiB)", "System", "dense", "window", "1,000"} <= set(texts)
    assert "GPU memory (MiB)" not in texts
    lines = [mark for mark in marks if mark["kind"] == "line mark"]
    assert {(m["System"], m["Sample"], m["Length (tokens)"]) for m in lines} == {
        ("dense", "1", "1,024"),
        ("window", "0", "1,024"),
    }
    dots = [mark for mark in marks if mark["kind"] == "point"]
    assert {m["System"]: m["Prefill (seconds)"] for m in dots} == {"dense": "2.4", "window": "0.6"}


def test_a_gpu_has_a_panel_and_what_has_no_memory_is_left_out(drawn):
    table = pl.DataFrame([_row("dense", 64, 0, 2.0, 2**30, 2**28)])
    asked = table.with_columns(system=pl.lit("asked")).drop("memory")
    texts, _ = drawn(memory(pl.concat([table, asked], how="diagonal")))
    assert {"Resident memory (MiB)", "GPU memory (MiB)"} <= set(texts)
    assert "asked" not in texts
    texts, _ = drawn(memory(table.with_columns(memory=pl.lit(None, dtype=table["memory"].dtype))))
    assert set(texts) == {"Memory over time", "No memory was measured"}
    texts, _ = drawn(memory(table.clear()))
    assert set(texts) == {"Memory over time", "No prompt was answered"}
