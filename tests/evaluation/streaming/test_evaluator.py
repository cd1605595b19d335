import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import PYTHONPATH
from support.streamed_models import VOCABULARY, Recurrent, Stateless, make
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration

import needlework
from needlework.attention.apply import apply
from needlework.attention.seer.gates import Gates
from needlework.config.attention import Random, Seer, SketchWalk, Window
from needlework.evaluation import (
    StreamingEvalConfig,
    StreamingEvaluator,
    create_streaming_evaluator,
)
from needlework.evaluation.streaming import chunk_run, token_losses
from needlework.evaluation.streaming.accumulator import Accumulator
from needlework.evaluation.streaming.checkpoint import Journal

T5 = T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
WINDOW = Window(block_size=16, dense_layers=0, sink_tokens=3, recent_tokens=50)


def _ids(tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (tokens,), generator=generator)


@torch.no_grad()
def _reference(model, ids: torch.Tensor, begin: int = 0) -> list[float]:
    """Losses of ids[1:] (or from ids[begin] on) by one pass, token by token."""
    if hasattr(model, "reset_state"):
        model.reset_state()
    logits = model(ids[None])
    logits = logits.logits if hasattr(logits, "logits") else logits
    logits = (logits if isinstance(logits, torch.Tensor) else logits[0])[0].double()
    found = []
    for t in range(max(1, begin), len(ids)):
        found.append(float(logits[t - 1].logsumexp(0) - logits[t - 1, ids[t]]))
    return found


def _evaluator(model, chunk=None, overlap=0, **kwargs):
    return StreamingEvaluator(model, chunk, overlap, "cpu", False, **kwargs)


def _losses(evaluator, data, max_tokens=None):
    found = evaluator.evaluate_streaming_with_metrics(data, max_tokens, True)
    assert len(found["per_token_losses"]) == found["total_tokens"]
    return found


MODES = {
    "llama": "cache", "mistral": "state", "gemma2": "cache", "opt": "cache", "gpt2": "cache",
    "mamba2": "state", "qwen3_next": "cache", "falcon_h1": "cache", "infini": "state",
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_chunks_give_the_losses_of_one_pass(name):
    model, ids = make(name), _ids(301)
    wanted = _reference(model, ids)
    assert np.std(wanted) > 0.3
    for chunk in (7, 128, None):
        found = _losses(_evaluator(model, chunk), ids)
        assert found["mode"] == MODES[name]
        assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        assert found["loss"] == pytest.approx(np.mean(wanted), abs=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(np.mean(wanted)), rel=1e-5)


@pytest.mark.parametrize("name", ["mistral", "infini", "mamba2"])
def test_state_is_exact_along_thousands_of_tokens(name):
    model, ids = make(name), _ids(2501)
    with torch.no_grad():
        wanted = cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
    for chunk in (128, 1000):
        found = _losses(_evaluator(model, chunk), ids)
        assert found["mode"] == "state"
        assert (found["per_token_losses"] - wanted).abs().max() < 1e-5


def test_what_chunks_of_mamba2_leave_is_rounding(monkeypatch):
    # Its scan asks for float32 whatever the weights are.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model, ids = make("mamba2").double(), _ids(301)
    found = _losses(_evaluator(model, 7), ids)
    assert found["per_token_losses"].tolist() == pytest.approx(_reference(model, ids), abs=1e-12)


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2", "infini"])
def test_chunks_of_one_token_are_exact(name):
    model, ids = make(name), _ids(90)
    found = _losses(_evaluator(model, 1), ids)
    assert found["num_chunks"] == 89
    assert found["per_token_losses"].tolist() == pytest.approx(
        _reference(model, ids), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("chunk", [1, 7, 50, 128])
def test_the_window_streams_in_constant_memory_with_its_own_losses(chunk):
    model, ids = make("llama"), _ids(301)
    with apply(model, WINDOW):
        wanted = _reference(model, ids)
    assert np.abs(np.array(wanted) - _reference(model, ids)).max() > 0.1
    evaluator, accumulator = _evaluator(model, chunk, attention=WINDOW), Accumulator()
    losses = torch.cat([one.losses for one in evaluator.chunks(ids, accumulator=accumulator)])
    assert evaluator.run.mode == "state"
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    # Keys and values of 3 sinks and 49 recent tokens, in 3 layers with 2 heads of 8.
    full = accumulator["first_token"] + accumulator["tokens"] > 53
    assert set(accumulator["state_bytes"][full].tolist()) == {2 * 3 * 2 * 8 * 4 * 52}
    assert model.config._attn_implementation != "needlework"


def test_a_window_above_dense_layers_keeps_all_keys():
    model, ids = make("llama"), _ids(301)
    system = WINDOW.model_copy(update={"dense_layers": 1})
    with apply(model, system):
        wanted = _reference(model, ids)
    found = _losses(_evaluator(model, 64, attention=system), ids)
    assert found["mode"] == "cache"
    assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_block_sparse_systems_are_read_in_whole_blocks():
    model, ids = make("llama"), _ids(301)
    system = Random(block_size=16, top_k_blocks=3, dense_layers=1)
    with apply(model, system):
        wanted = _reference(model, ids)
    found = _losses(_evaluator(model, 48, attention=system), ids)
    assert found["mode"] == "cache"
    assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert _evaluator(model, attention=system).reading.chunk_size == 4096
    walk = SketchWalk(block_size=16, top_k_blocks=3, dense_layers=1)
    with pytest.raises(ValueError, match=r"read in chunks of 10 tokens .* set an overlap"):
        _losses(_evaluator(model, 10, attention=walk), ids)


SPARSE = {
    "random": lambda folder: Random(block_size=16, top_k_blocks=3, dense_layers=1),
    "walk": lambda folder: SketchWalk(block_size=16, top_k_blocks=3, dense_layers=1),
    "seer": lambda folder: Seer(gates=str(folder), block_size=16, density=0.4, dense_last_rows=0),
    "skip_decode": lambda folder: Random(block_size=16, top_k_blocks=1, skip_decode=True),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_a_last_chunk_of_one_token_is_read_as_the_rest_of_the_text(kind, tmp_path):
    model, ids = make("llama"), _ids(6 * 48 + 2)
    torch.manual_seed(7)
    Gates.new(model, block_size=16).save(tmp_path)
    system = SPARSE[kind](tmp_path)
    # The last token is only foretold: a block's choice looks at all tokens read of it.
    read = ids[None, :-1]
    dense = model(read).logits[0]
    with apply(model, system), torch.no_grad():
        logits = model(read).logits[0]
    wanted = cross_entropy(logits, ids[1:], reduction="none").tolist()
    assert (logits - dense)[-1].abs().max() > 1e-3
    found = _losses(_evaluator(model, 48, attention=system), ids)
    assert found["mode"] == "cache"
    assert found["num_chunks"] == 7
    assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_a_choice_that_depends_on_the_length_of_the_text_is_refused(tmp_path):
    model = make("llama")
    Gates.new(model, block_size=16).save(tmp_path)
    for key, kwargs in (
        ("dense_last_rows", {"density": 0.4}),
        ("nz_ratio", {"nz_ratio": 0.3, "dense_last_rows": 0}),
    ):
        system = Seer(gates=str(tmp_path), block_size=16, **kwargs)
        evaluator = _evaluator(model, 48, attention=system)
        with pytest.raises(ValueError, match=f"^seer: {key} counts on the text's end, .* overlap"):
            evaluator.evaluate_streaming(_ids(301))
    assert evaluator.evaluate_streaming(_ids(49))["num_chunks"] == 1
    found = _evaluator(model, 64, 32, attention=system).evaluate_streaming(_ids(301))
    assert (found["mode"], found["total_tokens"]) == ("strided", 300)


@pytest.mark.parametrize(("name", "most"), [("gpt2", 1024), ("opt", 2048)])
def test_a_text_longer_than_the_table_of_positions_is_told_first(name, most):
    model, ids = make(name), _ids(most + 2)
    read = []
    model.base_model.register_forward_hook(lambda module, args, out: read.append(1))
    evaluator = _evaluator(model, most)
    with pytest.raises(ValueError, match=f"knows {most} positions, .* of at most {most + 1}, or"):
        evaluator.evaluate_streaming(ids)
    assert len(read) <= 2
    assert evaluator.evaluate_streaming(ids, max_tokens=most + 1)["total_tokens"] == most
    with pytest.raises(ValueError, match=f"fewer than chunk_size {most + 2} reads; write at most"):
        _evaluator(model, most + 2, 5).evaluate_streaming(ids)
    found = _evaluator(model, most + 1, most // 2).evaluate_streaming(ids)
    assert (found["mode"], found["total_tokens"]) == ("strided", most + 1)


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma"])
def test_a_model_that_is_not_exact_in_chunks_is_refused(name):
    model = make(name)
    told = r"read in chunks of 8 tokens .* by \d.* at token \d+ of \d+; .* overlap"
    with pytest.raises(ValueError, match=told):
        _losses(_evaluator(model, 8), _ids(200))
    found = _losses(_evaluator(model, 64, 32), _ids(200))
    assert found["mode"] == "strided"
    # A text of one chunk carries nothing.
    assert _losses(_evaluator(model, 256), _ids(200))["total_tokens"] == 199


def test_segments_of_a_stream_begin_with_it_whatever_prompts_do():
    ids = _ids(150)
    model = make("infini")
    wanted = _reference(model, ids)
    model.config.infini["segment_alignment"] = "end"
    assert _reference(model, ids) != pytest.approx(wanted, abs=1e-3)
    for chunk in (7, 50):
        found = _losses(_evaluator(model, chunk), ids)
        assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_a_short_first_document_does_not_spare_the_check():
    evaluator = _evaluator(make("mamba"), 8, separate_documents=True)
    with pytest.raises(ValueError, match="read in chunks of 8 tokens"):
        evaluator.evaluate_streaming([_ids(6), _ids(200)])


def test_a_module_carries_its_own_state():
    model, ids = Recurrent(), _ids(301)
    wanted = _reference(model, ids)
    for chunk in (1, 7, 128):
        found = _losses(_evaluator(model, chunk), ids)
        assert found["mode"] == "state"
        assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert found["chunk_size"] == 128
    assert _evaluator(model).reading.chunk_size == 8192


def test_a_module_without_state_is_strided_and_the_last_logit_serves_the_next_chunk():
    model, ids = Stateless(), _ids(31)
    found = _losses(_evaluator(model, 10), ids)
    wanted = []
    for begin in (0, 10, 20):
        wanted += _reference(model, ids[begin : begin + 11])
    assert found["mode"] == "strided"
    assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def _strided(model, ids, window, overlap):
    """The loop of overlapping windows, each token scored by the first window that has it."""
    losses, scored = [], 1
    for begin in range(0, len(ids), window - overlap):
        end = min(begin + window, len(ids))
        losses += _reference(model, ids[begin:end], scored - begin)
        scored = end
        if end == len(ids):
            return losses
    return losses


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_strided_windows_are_those_of_the_plain_loop(data):
    model = Stateless()
    window = data.draw(st.integers(2, 40))
    overlap = data.draw(st.integers(1, window - 1))
    ids = _ids(data.draw(st.integers(2, 120)))
    at_once = data.draw(st.integers(1, 5))
    evaluator, accumulator = (
        _evaluator(model, window, overlap, window_batch_size=at_once),
        Accumulator(),
    )
    chunks = list(evaluator.chunks(ids, accumulator=accumulator))
    losses = torch.cat([chunk.losses for chunk in chunks]).tolist()
    assert losses == pytest.approx(_strided(model, ids, window, overlap), rel=1e-5, abs=1e-5)
    at = 1
    for chunk in chunks:
        assert chunk.first_token == at
        at += chunk.tokens
    assert at == len(ids)


def test_strided_windows_of_a_transformer():
    model, ids = make("llama"), _ids(200)
    wanted = _strided(model, ids, 64, 32)
    for at_once in (1, 3):
        found = _losses(_evaluator(model, 64, 32, window_batch_size=at_once), ids)
        assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        assert found["num_chunks"] == 6


def test_results_weigh_chunks_by_their_tokens():
    model, ids = make("llama"), _ids(111)
    found = _evaluator(model, 50).evaluate_streaming_with_metrics(ids)
    wanted = _reference(model, ids)
    parts = [wanted[:50], wanted[50:100], wanted[100:]]
    means = [np.mean(part) for part in parts]
    assert found["chunk_losses"] == pytest.approx(means, abs=1e-5)
    assert found["chunk_perplexities"] == pytest.approx(np.exp(means), rel=1e-5)
    assert found["avg_chunk_loss"] == pytest.approx(np.mean(means), abs=1e-5)
    assert found["std_chunk_loss"] == pytest.approx(np.std(means), abs=1e-5)
    assert found["loss"] == pytest.approx(np.mean(wanted), abs=1e-5)
    assert abs(found["loss"] - np.mean(means)) > 1e-3
    assert found["per_token_losses"] is None
    assert len(found["chunk_times"]) == found["num_chunks"] == 3
    assert found["avg_chunk_time"] == pytest.approx(np.mean(found["chunk_times"]))
    assert found["tokens_per_second"] == pytest.approx(110 / found["total_time"])


def test_max_tokens_and_config():
    model, ids = make("llama"), _ids(111)
    for most, scored in ((None, 110), (0, 0), (1, 0), (2, 1), (60, 59), (500, 110)):
        found = _evaluator(model, 50).evaluate_streaming(ids, max_tokens=most)
        assert found["total_tokens"] == scored
        assert math.isnan(found["perplexity"]) == (scored == 0)
        assert found["mode"] == "cache"
    config = StreamingEvalConfig(chunk_size=40, max_tokens=60, device="cpu", verbose=False)
    found = create_streaming_evaluator(model, config).evaluate_streaming(ids)
    assert (found["total_tokens"], found["num_chunks"]) == (59, 2)
    usual = create_streaming_evaluator(model)
    assert (usual.reading.chunk_size, usual.reading.overlap) == (8192, 0)
    with pytest.raises(ValueError, match=r"^max_tokens -1: write a whole number, 0 or more"):
        _evaluator(model, 50).evaluate_streaming(ids, max_tokens=-1)


def test_the_chunk_of_a_model_is_its_own():
    def own(name, **kwargs):
        return _evaluator(make(name), **kwargs).reading.chunk_size

    assert own("infini") == 32
    assert own("mistral") == 64
    assert own("llama") == own("llama", overlap=64) == 4096
    assert own("llama", attention=WINDOW) == 50
    assert own("mamba2") == 8192


def test_documents_are_joined_or_kept_apart():
    model = make("infini")
    parts = [_ids(50, 1), _ids(1, 2), _ids(80, 3)]
    joined = _losses(_evaluator(model, 20), parts)
    assert joined["per_token_losses"].tolist() == pytest.approx(
        _reference(model, torch.cat(parts)), rel=1e-5, abs=1e-5
    )
    evaluator, accumulator = _evaluator(model, 20, separate_documents=True), Accumulator()
    losses = torch.cat([chunk.losses for chunk in evaluator.chunks(parts, accumulator=accumulator)])
    wanted = _reference(model, parts[0]) + _reference(model, parts[2])
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert set(accumulator["document"].tolist()) == {0, 2}
    limited = _losses(_evaluator(model, 20, separate_documents=True), parts, 70)
    assert limited["total_tokens"] == 49 + 0 + 18
    rows = torch.stack([_ids(40, 1), _ids(40, 2)])
    assert _losses(_evaluator(model, 20, separate_documents=True), rows)["total_tokens"] == 78


def test_logits_are_never_held_all_at_once(monkeypatch):
    model, ids = make("gemma2"), _ids(201)
    seen = []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.numel()))
    monkeypatch.setitem(token_losses.LOGITS_AT_ONCE, "cpu", 10 * VOCABULARY)
    evaluator = _evaluator(model, 200)
    found = _losses(evaluator, ids)
    assert max(seen) == 10 * VOCABULARY
    assert found["per_token_losses"].tolist() == pytest.approx(
        _reference(model, ids), rel=1e-5, abs=1e-5
    )
    assert model.model is model.base_model


def test_a_head_that_asks_a_part_of_the_base_model_is_left_alone(monkeypatch):
    monkeypatch.setitem(token_losses.LOGITS_AT_ONCE, "cpu", 10 * VOCABULARY)
    model, ids = make("opt"), _ids(150)
    found = _losses(_evaluator(model, 64, 32), ids)
    wanted = _strided(model, ids, 64, 32)
    assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


class _Short:
    """Makes a model run out of memory now and then, in the middle of its work."""

    def __init__(self, model, share, monkeypatch, longest=None):
        self.draw = torch.Generator().manual_seed(8)
        self.share, self.longest, self.failed, self.next_fail = share, longest, 0, 0
        layer = [m for m in model.modules() if type(m).__name__.endswith("MLP")][-1]
        own = layer.forward

        def forward(x):
            tokens = x.shape[0] * x.shape[1]
            too_long = self.longest is not None and tokens > self.longest
            is_told = self.failed < self.next_fail
            if too_long or is_told or torch.rand((), generator=self.draw) < self.share:
                self.failed += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return own(x)

        monkeypatch.setattr(layer, "forward", forward)


@pytest.mark.parametrize("name", ["llama", "mistral", "infini", "falcon_h1", "qwen3_next"])
def test_out_of_memory_loses_and_repeats_no_token(name, monkeypatch):
    model, ids = make(name), _ids(301)
    wanted = _reference(model, ids)
    short = _Short(model, 0.2, monkeypatch)
    evaluator, accumulator = _evaluator(model, 64), Accumulator()
    chunks = list(evaluator.chunks(ids, accumulator=accumulator))
    assert short.failed > 2
    assert accumulator["out_of_memory"].sum() > 0
    assert torch.cat([c.losses for c in chunks]).tolist() == pytest.approx(
        wanted, rel=1e-5, abs=1e-5
    )
    assert [c.first_token for c in chunks] == [
        1 + sum(c.tokens for c in chunks[:i]) for i in range(len(chunks))
    ]
    assert evaluator.run.size < 64


def test_out_of_memory_takes_fewer_windows_then_smaller_ones(monkeypatch, caplog):
    model, ids = make("llama"), _ids(301)
    _Short(model, 0, monkeypatch, longest=40)
    evaluator, accumulator = _evaluator(model, 64, 32, window_batch_size=4), Accumulator()
    chunks = list(evaluator.chunks(ids, accumulator=accumulator))
    assert (evaluator.run.size, evaluator.run.overlap, evaluator.run.window_batch_size) == (
        32,
        16,
        1,
    )
    assert "chunk 0: out of memory at token 1; going on with 32 tokens" in caplog.text
    assert torch.cat([c.losses for c in chunks]).tolist() == pytest.approx(
        _strided(model, ids, 32, 16), rel=1e-5, abs=1e-5
    )
    # In the middle of a text: nothing is lost where windows become smaller.
    short = _Short(model := make("llama"), 0, monkeypatch)
    at = 1
    for i, chunk in enumerate(_evaluator(model, 64, 32).chunks(ids)):
        short.longest = 40 if i == 2 else short.longest
        assert chunk.first_token == at
        at += chunk.tokens
    assert at == 301


def test_what_ran_out_of_memory_once_is_tried_again_later(monkeypatch):
    model, ids = make("infini"), _ids(2001)
    short = _Short(model, 0, monkeypatch)
    evaluator, sizes = _evaluator(model, 32), []
    for i, chunk in enumerate(evaluator.chunks(ids)):
        sizes.append(chunk.tokens)
        short.longest = 16 if i == 0 else None
    assert sizes[:6] == [32, *[16] * 4, 32]
    assert max(sizes) == 32
    assert sum(sizes) == 2000


def test_the_check_has_patience_with_memory_too(monkeypatch):
    model, ids = make("llama"), _ids(301)
    wanted = _reference(model, ids)
    short = _Short(model, 0.25, monkeypatch)
    found = _losses(_evaluator(model, 7), ids)
    # Nearly fifty forwards at once or none: only what failed is done again.
    assert short.failed > 10
    assert found["per_token_losses"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_a_window_is_tried_again_before_it_is_made_smaller(monkeypatch):
    model, ids = make("llama"), _ids(301)
    wanted = _strided(model, ids, 64, 32)
    short = _Short(model, 0, monkeypatch)
    evaluator, accumulator = _evaluator(model, 64, 32), Accumulator()
    losses = []
    for chunk in evaluator.chunks(ids, accumulator=accumulator):
        losses += chunk.losses.tolist()
        short.next_fail = short.failed + 2
    assert accumulator["out_of_memory"].tolist() == [0, *[2] * (len(accumulator) - 1)]
    assert set(accumulator["tokens_read"].tolist()[:-1]) == {63}
    assert losses == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_memory_too_small_for_anything_is_told(monkeypatch):
    model = make("llama")
    short = _Short(model, 0, monkeypatch)
    chunks = _evaluator(model, 64).chunks(_ids(301))
    next(chunks)
    short.longest = 0
    told = r"^chunk 1: out of memory at token 65 with 1 tokens, and no smaller chunk"
    with pytest.raises(ValueError, match=told):
        next(chunks)
    with pytest.raises(ValueError, match=r"^out of memory with few tokens, before the first chunk"):
        _evaluator(model, 64).evaluate_streaming(_ids(301))


def test_adaptive_chunks_grow_as_far_as_memory_and_text_reach(monkeypatch):
    model, ids = make("infini"), _ids(1001)
    short = _Short(model, 0, monkeypatch, longest=300)
    monkeypatch.setattr(chunk_run, "can_double_memory", lambda before: True)
    found = _losses(_evaluator(model, adaptive=True), ids)
    assert found["chunk_size"] == 256
    short.longest = None
    assert found["per_token_losses"].tolist() == pytest.approx(
        _reference(model, ids), rel=1e-5, abs=1e-5
    )
    assert _losses(_evaluator(model, adaptive=True), ids)["chunk_size"] == 512
    evaluator = _evaluator(model, 32, 16, adaptive=True)
    assert _losses(evaluator, ids)["mode"] == "strided"
    assert (evaluator.run.size, evaluator.run.window_batch_size) == (32, 16)


KILLED = {
    "infini": ("infini", (20,), None),
    "window": ("llama", (20,), WINDOW),
    "llama": ("llama", (20,), None),
    "falcon_h1": ("falcon_h1", (20,), None),
    "strided": ("llama", (40, 20), None),
}
_DOCUMENTS = [_ids(100, 1), _ids(301, 2)]
_RUN = """
import os, signal, torch
from support.streamed_models import make
from evaluation.streaming.test_evaluator import _DOCUMENTS, KILLED, _evaluator
from needlework.evaluation.streaming.checkpoint import Journal
torch.set_num_threads(1)
for name, (model, chunk, attention) in KILLED.items():
    if os.fork() == 0:
        evaluator = _evaluator(make(model), *chunk, attention=attention, separate_documents=True)
        journal = Journal(os.path.join({folder!r}, name), "k", every_seconds=0)
        for i, chunk in enumerate(evaluator.chunks(_DOCUMENTS, journal=journal)):
            if i == 9:
                os.kill(os.getpid(), signal.SIGKILL)
    assert os.wait()[1] == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with what runs that were killed had saved."""
    folder = tmp_path_factory.mktemp("killed")
    code = _RUN.format(folder=str(folder))
    path = {"PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **path}, check=True)
    return folder


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_goes_on_to_the_same_last_bit(name, killed):
    model_name, chunk, attention = KILLED[name]

    def run(journal):
        accumulator = Accumulator()
        evaluator = _evaluator(
            make(model_name), *chunk, attention=attention, separate_documents=True
        )
        rest = list(evaluator.chunks(_DOCUMENTS, accumulator=accumulator, journal=journal))
        return rest, accumulator

    rest, resumed = run(Journal(killed / name, "k"))
    whole, accumulator = run(None)
    assert 0 < len(rest) < len(whole) == len(resumed)
    for column in ("document", "first_token", "tokens", "loss", "state_bytes"):
        assert resumed[column].tolist() == accumulator[column].tolist()
    assert resumed.loss == accumulator.loss
    assert resumed.positions().equals(accumulator.positions())
    for one, other in zip(rest, whole[-len(rest) :], strict=True):
        assert torch.equal(one.losses, other.losses)
    # The state of another setting is not taken up.
    assert len(run(Journal(killed / name, "other"))[0]) == len(whole)


def test_a_run_is_resumed_by_path_and_the_file_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "is_due", True)
    path, model, ids = tmp_path / "state", make("llama"), _ids(200)
    whole = _evaluator(model, 30).evaluate_streaming(ids, resume=path)
    assert not path.exists()
    path.write_bytes(b"no state")
    with pytest.raises(ValueError, match=r"state: no saved state .*; delete it"):
        _evaluator(model, 30).evaluate_streaming(ids, resume=path)
    assert whole["total_tokens"] == 199


def test_a_state_serves_no_other_text_or_model(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Journal, "is_due", True)
    caplog.set_level("INFO")
    path, model, ids = tmp_path / "state", make("llama"), _ids(200)

    def stopped(model):
        own, counted = Accumulator.add, []

        def add(accumulator, chunk):
            counted.append(chunk)
            if len(counted) == 5:
                raise KeyboardInterrupt
            own(accumulator, chunk)

        evaluator = _evaluator(model, 30)
        with monkeypatch.context() as patch:
            patch.setattr(Accumulator, "add", add)
            with pytest.raises(KeyboardInterrupt):
                evaluator.evaluate_streaming(ids, resume=path)
        assert [file.name for file in tmp_path.iterdir()] == ["state"]

    stopped(model)
    other = ids.clone()
    other[140] = 3 if ids[140] > 3 else 4
    for text in (other, ids[:90]):
        with pytest.raises(ValueError, match=r"of another text: document 0 .*; delete it, or name"):
            _evaluator(model, 30).evaluate_streaming(text, resume=path)
    whole = _evaluator(model, 30).evaluate_streaming(ids)
    assert (
        _evaluator(make("llama"), 30).evaluate_streaming(ids, resume=path)["loss"] == whole["loss"]
    )
    assert "going on at document 0, token 120" in caplog.text
    stopped(model)
    changed = make("llama")
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    whole = _evaluator(changed, 30).evaluate_streaming(ids)
    found = _evaluator(changed, 30).evaluate_streaming(ids, resume=path)
    assert found["loss"] == whole["loss"]
    assert "state: is of another model or setting; beginning anew" in caplog.text


def test_what_is_wrong_is_one_line(tmp_path):
    model = make("llama")
    for other, told in (
        ("gpt2", "model: str is no torch module; give what AutoModelForCausalLM loads"),
        (model.model, "model: LlamaModel has no head; give what AutoModelForCausalLM loads"),
        (T5ForConditionalGeneration(T5), "model: T5ForConditionalGeneration has an encoder; give"),
    ):
        with pytest.raises(ValueError, match=f"^{told}"):
            StreamingEvaluator(other)
    for kwargs, told in (
        ({"chunk_size": 8, "overlap": 8}, "overlap 8: is not below chunk_size 8; write at most 7"),
        ({"chunk_size": 0}, "chunk_size 0: write a whole number, 1 or more, or None"),
        ({"chunk_size": 8, "overlap": -1}, "overlap -1: write a whole number, 0 or more"),
        ({"chunk_size": 8.5}, "chunk_size 8.5: write a whole number"),
        ({"chunk_size": "8"}, "chunk_size '8': write a whole number"),
        ({"device": "gpu"}, "device 'gpu': not to be had here .*; write cpu, cuda, or None$"),
        ({"device": "cuda:77"}, "device 'cuda:77': not to be had here"),
        (
            {"chunk_size": 8, "window_batch_size": 0},
            "window_batch_size 0: write a whole number, 1 or more",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{told}"):
            StreamingEvaluator(model, **{"device": "cpu", **kwargs})
    evaluator = _evaluator(model, 50)
    ids = _ids(200)
    with pytest.raises(ValueError, match=r"^log_interval 0: write a whole number, 1 or more"):
        evaluator.evaluate_streaming(ids, log_interval=0)
    ids[123] = VOCABULARY
    with pytest.raises(ValueError, match=r"^token 123: id 61 is not below .* vocabulary of 61;"):
        evaluator.evaluate_streaming(ids)
    ids[123] = -1
    with pytest.raises(ValueError, match=r"^token 123: id -1 "):
        evaluator.evaluate_streaming(ids)
    for data in ([], torch.empty(0, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"^data: empty"):
            evaluator.evaluate_streaming(data)
    with pytest.raises(ValueError, match=r"^data: float32 of shape"):
        evaluator.evaluate_streaming(torch.rand(8))
    with pytest.raises(ValueError, match=r"^data: object holds no tokens"):
        evaluator.evaluate_streaming(object())


def test_logits_that_are_not_finite_are_found_by_chunk_and_token():
    model, ids = Recurrent(), _ids(200)
    ids[ids == 60] = 59
    ids[130] = 60
    with torch.no_grad():
        model.embed.weight[60] = torch.nan
    told = r"^chunk 2, document 0: the logits for token 131 are not finite"
    with pytest.raises(ValueError, match=told):
        _evaluator(model, 50).evaluate_streaming(ids)


def test_the_model_is_left_as_it_was():
    model = make("llama").train()
    _evaluator(model, 50, attention=WINDOW).evaluate_streaming(_ids(120))
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    ids = _ids(60)
    model(ids[None]).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_public_names():
    assert needlework.StreamingEvaluator is StreamingEvaluator
    assert needlework.StreamingEvalConfig is StreamingEvalConfig
    assert needlework.create_streaming_evaluator is create_streaming_evaluator
    assert needlework.evaluation.StreamingEvaluator is StreamingEvaluator
