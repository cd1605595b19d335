"""Logic of the benchmarks, at sizes too small for meaningful times."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.sketchwalk_reference import reference_walk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import attention_model, attention_operator, official, run
from benchmarks.attention_operator import CPU, CUDA, operator_table
from benchmarks.opening import CPU as OPENING_CASE
from benchmarks.opening import opening_table
from benchmarks.training import training_table

pytestmark = pytest.mark.slow

LENGTHS = (1024, 2048)


def rows_of(table):
    """Rows of a Markdown table, by column."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]


def kept_pairs(n, kept_blocks):
    """Share of causal pairs if row i of blocks of 64 keeps kept_blocks(i) blocks, its own
    included."""
    pairs = 0
    for i in range(n // 64):
        pairs += (kept_blocks(i) - 1) * 64 * 64 + sum(range(1, 65))
    return pairs / (n * (n + 1) / 2)


@pytest.mark.parametrize(("case", "dtypes"), [(CPU, 2), (CUDA, 1)])
def test_operator_table_counts_pairs_of_each_case(case, dtypes):
    """The cases of both devices run on the CPU."""
    case = replace(case, heads=4, kv_heads=2, d=32, lengths=LENGTHS)
    rows = rows_of(operator_table(case, "cpu"))
    assert len(rows) == dtypes * len(LENGTHS) * (len(case.prefill) + len(case.decode))
    counts = {
        "1/8 of all blocks": lambda n, i: min(i + 1, n // 64 // 8),
        "density 0.2": lambda n, i: -(-(i + 1) // 5),
        "16 blocks": lambda n, i: min(i + 1, 16),
    }
    for kept, count in counts.items():
        for n in LENGTHS:
            expected = kept_pairs(n, lambda i, n=n, count=count: count(n, i))
            matching = [r for r in rows if (r["stage"], r["kept"], r["tokens"]) == (
                "prefill", kept, f"{n:,}",
            )]  # fmt: skip
            assert len(matching) == (dtypes if kept in case.prefill else 0)
            assert {r["pairs"] for r in matching} <= {f"{expected:.1%}"}
    # The last token sees all of the blocks it keeps: a sixteenth of 32, or ceil(3.2).
    decoded = {
        r["kept"]: r["pairs"] for r in rows if (r["stage"], r["tokens"]) == ("decode", "2,048")
    }
    for kept, blocks in {"1/16 of all blocks": 2, "density 0.1": 4}.items():
        assert decoded.get(kept) == (f"{blocks / 32:.1%}" if kept in case.decode else None)


def test_targets_are_marked_as_reached_or_not():
    kept = "1/16 of all blocks"
    case = replace(
        CPU,
        lengths=LENGTHS,
        dtypes=(torch.float32,),
        prefill={kept: CPU.prefill[kept], "16 blocks": CPU.prefill["16 blocks"]},
        decode={kept: CPU.decode[kept]},
        min_speedup={
            ("prefill", 1024, torch.float32, kept): 1e-9,
            ("decode", 2048, torch.float32, kept): 1e9,
        },
        max_choosing_share={("prefill", 2048, torch.float32, kept): 0.0},
    )
    marks = {
        (r["stage"], r["tokens"]): r["target"]
        for r in rows_of(operator_table(case, "cpu"))
        if r["kept"] == kept
    }
    assert marks == {
        ("prefill", "1,024"): ">= 1e-09: reached",
        ("decode", "1,024"): "",
        ("prefill", "2,048"): "choosing <= 0%: **not reached**",
        ("decode", "2,048"): ">= 1e+09: **not reached**",
    }


def test_speedup_is_over_the_faster_dense_kernel_and_includes_choosing(monkeypatch):
    """Two kernels, as on CUDA; the first round is a warm-up and does not count."""
    times = {"flash": iter([100.0, 2.0, 4.0, 6.0]), "cuDNN": iter([0.1, 5.0, 5.0, 5.0])}
    own = iter([(9.0, 9.0, 5), (0.25, 0.75, 5), (0.5, 1.5, 5), (0.25, 0.75, 5)])
    monkeypatch.setattr(attention_operator, "_backends", lambda *args, **kwargs: list(times))
    monkeypatch.setattr(attention_operator, "_dense_seconds", lambda *args: next(times[args[-1]]))
    monkeypatch.setattr(attention_operator._Layer, "seconds", lambda *args: next(own))
    x = torch.zeros(1, 1, 4, 8)
    systems = {"some": attention_operator.CPU.prefill["16 blocks"]}
    (row,) = attention_operator._measure("prefill", x, x, x, systems).values()
    assert (row.backend, row.dense, row.choosing, row.sparse) == ("flash", 4.0, 0.25, 1.0)
    assert row.ratio == 2.0
    assert row.density == 0.5


def test_decoding_rounds_take_one_token_each():
    x = torch.randn(1, 2, 200, 8)
    rounds = [*attention_operator._decodes(x, x, x, {})]
    assert [key.shape[2] for _, key, _, _ in rounds] == [*range(168, 201)]
    assert all(torch.equal(query, key[:, :, -1:]) for query, key, _, _ in rounds)


@pytest.mark.parametrize(("power", "mark"), [(1.1, "reached"), (1.3, "**not reached**")])
def test_growth_exponent(power, mark):
    rows = {
        n: attention_operator._Row(n**2.0, "sdpa", 0.0, n**power, 1.0, 1.0)
        for n in (8192, 16384, 32768)
    }
    line = attention_operator._growth(torch.float32, rows)
    assert f"n^{power:.2f} with" in line
    assert f"< 1.2: {mark})" in line
    assert "n^2.00 dense" in line


def test_whole_model_tables_name_every_system():
    rows = rows_of(attention_model.model_table((128, 256)))
    assert [r["system"] for r in rows[: len(attention_model.SYSTEMS)]] == [*attention_model.SYSTEMS]
    assert {r["system"]: r["tokens"] for r in rows}[attention_model.ORACLE] == "128"
    assert {r["prefill ratio"] for r in rows if r["system"] == attention_model.DENSE} == {"1.00"}
    table = attention_model.infini_table((128, 256))
    assert re.search(r"grows as n\^-?\d\.\d\d \(<= 1.1: ", table)


def test_long_prefill_runs_in_a_separate_process():
    table = attention_model.long_table((256, 4096), (attention_model.DENSE,))
    short, long = rows_of(table)
    assert (short["tokens"], long["tokens"]) == ("256", "4,096")
    assert short["speed-up"] == long["speed-up"] == "1.0"
    # Keys and values of 4,096 tokens alone: 2 x 3 layers x 128 numbers x 4 bytes.
    assert int(long["extra peak MB"].replace(",", "")) >= 12
    assert "67 MB at 4,096" in table


def test_an_unknown_part_is_rejected_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "speed"])
    with pytest.raises(SystemExit, match="unknown part speed; choose from attention, generation"):
        run.main()


def test_training_table_has_the_same_losses_for_all_loops():
    rows = rows_of(training_table((128,), 1))
    assert [row["loop"] for row in rows] == ["Trainer", "Trainer, our loss", "needlework"]
    losses = {float(row["mean loss"]) for row in rows}
    assert max(losses) == pytest.approx(min(losses), rel=1e-3)
    assert all("<= 1.05: " in row["needlework / loop"] for row in rows[:2])


def test_opening_table_compares_each_option_with_its_plan(monkeypatch):
    variants = ({}, {"cache": "quantized", "prefill_chunk_tokens": 64}, {"tp": 3})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = opening_table(
        replace(OPENING_CASE, hidden=128, layers=2, tokens=256, variants=variants)
    )
    plain, quantized, undivided = rows_of(table)
    assert plain["options"] == "plain"
    assert quantized["options"] == "cache: quantized, prefill_chunk_tokens: 64"
    # 2 layers x keys and values x 2 heads x 64 x 256 tokens, in 4 bytes and in 1.
    assert plain["cache planned"] == "0.5 MiB"
    assert quantized["cache planned"] == "0.1 MiB"
    for row in (plain, quantized):
        assert all(row.values())
    # A model that cannot be opened gives the reason, and the others continue.
    assert "tp" in undivided["cache planned"]


def test_differences_from_the_released_code_start_from_our_walk():
    """The plain formulae of `official.OURS` are those of the reference, in both stages."""
    generator = torch.Generator().manual_seed(0)
    n, d, layers = 64 * 3 + 20, 8, []
    for _ in range(2):
        query, key = (torch.randn(2, n, d, generator=generator) * 3 for _ in range(2))
        layers.append(official.Layer(query, key))
    both = [torch.stack([layer[i] for layer in layers]).double().numpy() for i in range(2)]
    walks, _ = official.prefill_walks(layers, official.OURS)
    expected = reference_walk(official.SYSTEM, *both, False, np.eye(d))
    for got, reference in zip(walks, expected, strict=True):
        np.testing.assert_allclose(got, reference, atol=1e-6)
    decoded = official.decode_walks(layers, official.OURS)
    assert len(decoded) == 2 * official.DECODED
    for (tokens, row), layer in zip(decoded[-2:], range(2), strict=True):
        reference = reference_walk(official.SYSTEM, *both, True, np.eye(d))[layer]
        assert tokens == n
        np.testing.assert_allclose(row, reference[-1], atol=1e-6)
    masked = official.VARIANTS["future blocks masked after the softmax"]
    theirs = official.prefill_walks(layers, masked)[0][0]
    assert official.comparison(walks[0][2], theirs[2], 2, n).divergence > 1e-4
