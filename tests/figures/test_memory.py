"""Memory over time, rendered to SVG: its texts, marks and data."""

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


def test_the_slowest_of_the_longest_prompts_is_shown(drawn):
    rows = [
        _row("dense", 512, 0, 9.0, 2**30, None),
        _row("dense", 1024, 0, 2.0, 2**30, None),
        _row("dense", 1024, 1, 4.0, 2**30, None),
        _row("window", 1024, 0, 1.0, 2**29, None),
    ]
    texts, marks = drawn(memory([pl.DataFrame(rows)]))
    assert "One prompt of 1,024 tokens: the slowest of each system" in texts
    assert {"Resident memory (MiB)", "System", "dense", "window", "1,000"} <= set(texts)
    assert "GPU memory (MiB)" not in texts
    lines = [mark for mark in marks if mark["kind"] == "line mark"]
    assert {(m["System"], m["Sample"], m["Length (tokens)"]) for m in lines} == {
        ("dense", "1", "1,024"),
        ("window", "0", "1,024"),
    }
    dots = [mark for mark in marks if mark["kind"] == "point"]
    assert {m["System"]: m["Prefill (seconds)"] for m in dots} == {"dense": "2.4", "window": "0.6"}


def test_a_gpu_has_a_panel_and_systems_without_memory_are_left_out(drawn):
    table = pl.DataFrame([_row("dense", 64, 0, 2.0, 2**30, 2**28)])
    remote = table.with_columns(system=pl.lit("remote")).drop("memory")
    texts, _ = drawn(memory([table, remote]))
    assert {"Resident memory (MiB)", "GPU memory (MiB)"} <= set(texts)
    assert "remote" not in texts
    texts, _ = drawn(memory([table.with_columns(memory=pl.lit(None, dtype=table["memory"].dtype))]))
    assert set(texts) == {"Memory over time", "No memory was measured"}
    texts, _ = drawn(memory([table.clear()]))
    assert set(texts) == {"Memory over time", "No prompt was answered"}


def _layers(rows: list[dict]) -> list[tuple[dict, list[dict]]]:
    """Mark and data of each layer of the first panel."""
    chart = memory([pl.DataFrame(rows)]).to_dict()
    panel = chart.get("hconcat", [chart])[0]
    data = chart["datasets"]
    return [(layer["mark"], data[layer["data"]["name"]]) for layer in panel["layer"]]


def test_lines_are_the_readings_and_a_dot_marks_the_end_of_prefill():
    row = _row("dense", 64, 3, 8.0, 2**30, None)
    (line, readings), (_, (dot,)) = _layers([row])
    # A reading is the maximum since the previous one.
    assert line["interpolate"] == "step-before"
    assert [r["seconds"] for r in readings] == [2.0, 4.0, 8.0]
    assert [r["mebibytes"] for r in readings] == [256.0, 512.0, 1024.0]
    assert [r["resident_bytes"] for r in readings] == [2**28, 2**29, 2**30]
    # At 4.8 s, within the last of the three.
    assert (dot["seconds"], dot["mebibytes"]) == (8.0 * 0.6, 1024.0)


def test_a_system_that_stopped_early_shows_its_own_longest(drawn):
    rows = [
        _row("dense", 1024, 0, 4.0, 2**30, None),
        # Slowest in prefill, and slowest in total.
        {**_row("far", 512, 0, 1.0, 2**30, None), "prefill_seconds": 3.0, "decode_seconds": 0.1},
        {**_row("far", 512, 1, 1.0, 2**30, None), "prefill_seconds": 1.0, "decode_seconds": 9.0},
        _row("far", 256, 2, 99.0, 2**30, None),
    ]
    texts, marks = drawn(memory([pl.DataFrame(rows)]))
    assert any(text.startswith("One prompt of 1,024 tokens") for text in texts)
    lines = {m["System"]: m["Sample"] for m in marks if m["kind"] == "line mark"}
    assert lines == {"dense": "0", "far": "1"}
