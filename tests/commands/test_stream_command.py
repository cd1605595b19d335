import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from needlework.cli import app
from needlework.evaluation.streaming import StreamingEvaluator
from needlework.models.checkpoint import open_model

TINY = Path(__file__).resolve().parents[2] / "resources" / "needlework-tiny"
IDS = np.random.default_rng(0).integers(3, 900, 700).astype(np.uint16)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    IDS.tofile("ids.bin")


def _lines(*args: str) -> list[str]:
    given = ["stream", "ids.bin", "--model", str(TINY), *args]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stdout
    return done.stdout.splitlines()


def test_an_exact_perplexity_is_that_of_one_forward():
    lines = _lines("--chunk-size", "128", "--tokens", "500")
    model, _ = open_model(TINY)
    ids = torch.from_numpy(IDS[:500].astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
    perplexity, nats = float(lines[0].split()[1]), float(lines[0].split("(")[1].split()[0])
    assert nats == pytest.approx(loss, abs=2e-5)
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert lines[1].strip() == "mode cache (exact), chunks of 128 tokens"
    assert lines[2].strip().startswith("499 tokens scored in ")
    assert lines[-1] == "tables: results/stream/ids"
    folder = Path("results/stream/ids")
    names = ("chunks", "positions", "measurements")
    chunks, positions, measured = (pl.read_parquet(folder / f"{name}.parquet") for name in names)
    assert chunks["tokens"].sum() == positions["tokens"].sum() == measured["tokens"].sum() == 499
    assert pl.read_csv(folder / "stream.csv")["perplexity"][0] == pytest.approx(
        perplexity, rel=1e-5
    )
    assert not (folder / "state").exists()
    with pytest.raises(ValueError, match="holds results already; name another --output"):
        _lines()


def test_windows_overlap_by_half_of_them_or_as_told():
    model, _ = open_model(TINY)
    for told, overlap in (((), 64), (("--overlap", "100"), 100)):
        lines = _lines("--mode", "strided", "--chunk-size", "128", *told, "--output", f"{overlap}")
        expected = StreamingEvaluator(model, 128, overlap, verbose=False).evaluate_streaming(
            torch.from_numpy(IDS.astype(np.int64))
        )
        assert float(lines[0].split()[1]) == pytest.approx(expected["perplexity"], rel=1e-5)
        assert "mode strided (an approximation: windows)" in lines[1]


def test_infini_attention_carries_a_state():
    lines = _lines("--attention", "{type: infini, segment_length: 64}")
    assert lines[1].strip() == "mode state (exact), chunks of 64 tokens"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--overlap", "3"), "^--overlap 3: is of strided windows; write --mode strided too"),
        (("--mode", "strided"), "^--mode strided: has windows of --chunk-size tokens; write it"),
        (("--mode", "strided", "--chunk-size", "8", "--overlap", "8"), "is not below chunk_size 8"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(args, says):
    with pytest.raises(ValueError, match=says):
        _lines(*args)
    assert not Path("results").exists()
