"""`needlework stream`: its numbers, tables and output, and errors of its options."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from support.paths import TINY
from typer.testing import CliRunner

from needlework.cli.app import app
from needlework.config.attention.window import Window
from needlework.config.opening import ModelSpec
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
from needlework.evaluation.streaming.evaluator import StreamingEvaluator
from needlework.models.checkpoint import open_model
from needlework.tasks.prompts.tokenizer import open_tokenizer

pytestmark = pytest.mark.slow

IDS = np.random.default_rng(0).integers(3, 900, 700).astype(np.uint16)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    IDS.tofile("ids.bin")


def _lines(*args: str, text: str = "ids.bin") -> list[str]:
    given = ["stream", text, "--model", str(TINY), *args]
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.stdout
    return done.stdout.splitlines()


def test_exact_perplexity_equals_one_forward_pass():
    lines = _lines("--chunk-size", "128", "--tokens", "500")
    model, _ = open_model(ModelSpec(path=TINY))
    ids = torch.from_numpy(IDS[:500].astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
    perplexity, nats = float(lines[0].split()[1]), float(lines[0].split("(")[1].split()[0])
    assert nats == pytest.approx(loss, abs=2e-5)
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert lines[1].strip() == "mode cache (exact), chunks of 128 tokens"
    assert lines[-1] == "tables: results/stream/ids"
    folder = Path("results/stream/ids")
    names = ("chunks", "positions", "measurements")
    chunks, positions, measured = (pl.read_parquet(folder / f"{name}.parquet") for name in names)
    assert chunks["tokens"].sum() == positions["tokens"].sum() == measured["tokens"].sum() == 499
    seconds = measured["seconds"].sum()
    rate = f"{499 / seconds:,.0f}"
    assert lines[2].strip() == f"499 tokens scored in {seconds:.1f} s, {rate} per second"
    mebibytes = chunks["state_bytes"].max() / 2**20
    assert lines[3].strip() == f"at most {mebibytes:.2f} MiB of state between chunks"
    # By doublings of the position.
    assert positions["first_position"].to_list() == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert pl.read_csv(folder / "stream.csv")["perplexity"][0] == pytest.approx(
        perplexity, rel=1e-5
    )
    assert not (folder / "state").exists()
    with pytest.raises(ValueError, match="contains results already; choose another --output"):
        _lines()


def test_windows_overlap_by_half_or_as_given():
    model, _ = open_model(ModelSpec(path=TINY))
    for options, overlap in (((), 64), (("--overlap", "100"), 100)):
        lines = _lines(
            "--mode", "strided", "--chunk-size", "128", *options, "--output", f"{overlap}"
        )
        expected = StreamingEvaluator(model, 128, overlap, verbose=False).evaluate_streaming(
            torch.from_numpy(IDS.astype(np.int64))
        )
        assert float(lines[0].split()[1]) == pytest.approx(expected["perplexity"], rel=1e-5)
        assert "mode strided (approximate: windows)" in lines[1]


def _expected(documents, **how) -> float:
    model, _ = open_model(ModelSpec(path=TINY))
    evaluator = StreamingEvaluator(model, 32, verbose=False, **how)
    return evaluator.evaluate_streaming(documents)["perplexity"]


def _perplexity(lines: list[str]) -> float:
    return float(lines[0].split()[1])


def test_documents_of_a_column_are_separate_or_joined():
    rows = [{"other": [5] * 9, "ids": part.tolist()} for part in np.split(IDS[:150], 3)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = [torch.tensor(row["ids"]) for row in rows]
    args = ("--tokens", "700", "--column", "ids", "--chunk-size", "32", "--output")
    for options, separate, scored in (((), False, 149), (("--separate-documents",), True, 147)):
        lines = _lines(*args, f"{separate}", *options, text="rows.jsonl")
        assert lines[2].strip().startswith(f"{scored} tokens scored in ")
        expected = _expected(documents, separate_documents=separate)
        assert _perplexity(lines) == pytest.approx(expected, rel=1e-5)


def test_an_attention_method_is_applied():
    window = "{type: window, recent_tokens: 8, block_size: 4, sink_tokens: 0, dense_layers: 0}"
    lines = _lines("--tokens", "700", "--chunk-size", "32", "--attention", window)
    system = Window(recent_tokens=8, block_size=4, sink_tokens=0, dense_layers=0)
    ids = torch.from_numpy(IDS.astype(np.int64))
    expected = _expected(ids, attention=system)
    assert _perplexity(lines) == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(_expected(ids), rel=1e-3)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("other.bin", ()),
        ("ids.bin", ("--attention", "{type: random, block_size: 8, density: 0.2}")),
    ],
    ids=["text", "attention"],
)
def test_a_state_of_another_text_or_attention_is_not_resumed(
    text: str, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    save, saved = StreamCheckpoint.save, []

    def interrupted(checkpoint: StreamCheckpoint, *state):
        save(checkpoint, *state)
        saved.append(checkpoint.path)
        if len(saved) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StreamCheckpoint, "is_due", True)
        patch.setattr(StreamCheckpoint, "save", interrupted)
        with pytest.raises(Killed):
            _lines("--chunk-size", "32", "--tokens", "500", "--output", "one")
    assert saved[-1].exists()
    IDS[::-1].tofile("other.bin")
    args = ("--chunk-size", "32", "--tokens", "500", *more)
    one, two = (_lines(*args, "--output", folder, text=text) for folder in ("one", "two"))
    assert one[0] == two[0]


def test_infini_attention_carries_a_state():
    lines = _lines("--attention", "{type: infini, segment_length: 64}")
    assert lines[1].strip() == "mode state (exact), chunks of 64 tokens"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--overlap", "3"), "^--overlap 3: requires --mode strided; add it"),
        (("--mode", "strided"), "^--mode strided: requires --chunk-size"),
        (
            ("--mode", "strided", "--chunk-size", "8", "--overlap", "8"),
            "must be below chunk_size 8",
        ),
    ],
)
def test_option_errors_leave_no_output(args, message):
    with pytest.raises(ValueError, match=message):
        _lines(*args)
    assert not Path("results").exists()


def test_bits_per_byte_and_character_are_those_of_one_pass():
    text = "Der Fluß führt 水 und 🌊.\nThe sky is blue. " * 12
    Path("a.txt").write_text(text, encoding="utf-8")
    tokenizer = open_tokenizer(TINY)
    ids = torch.tensor([tokenizer.encode(text).ids[:300]])
    model, _ = open_model(ModelSpec(path=TINY))
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    bits = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    bits /= math.log(2)
    # The tokenizer is byte-level; its first token is BOS.
    raw = text.encode()[: sum(map(len, map(tokenizer.id_to_token, ids[0, 1:].tolist())))]
    _lines("--chunk-size", "64", "--tokens", "300", text="a.txt")
    (row,) = pl.read_csv("results/stream/a/stream.csv").to_dicts()
    assert row["bits_per_byte"] == pytest.approx(bits / len(raw), rel=1e-4)
    characters = len(raw.decode("utf-8", errors="ignore"))
    assert row["bits_per_character"] == pytest.approx(bits / characters, rel=1e-4)


@pytest.mark.parametrize("bos", ["first", "none", "each_window"])
def test_bos_is_an_option(bos):
    Path("a.txt").write_text("The sky is blue.\n" * 9)
    args = ["--mode", "strided", "--chunk-size", "16", "--overlap", "4", "--bos", bos]
    _lines(*args, "--tokens", "80", text="a.txt")
    starts = np.load("results/stream/a/tokens.npy")[0] == open_tokenizer(TINY).token_to_id("<s>")
    assert starts == (bos != "none")
    read = pl.read_parquet("results/stream/a/chunks.parquet")
    assert read["tokens"].to_list()[1] == (11 if bos == "each_window" else 12)
