import os
import subprocess
import sys

import pytest
import torch
from support.paths import PYTHONPATH
from support.streamed_models import make
from support.streaming import WINDOW, evaluator_of, random_ids

from needlework.evaluation.streaming.accumulator import Accumulator
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint

pytestmark = pytest.mark.slow

RUNS = {
    "infini": ("infini", (20,), None),
    "window": ("llama", (20,), WINDOW),
    "llama": ("llama", (20,), None),
    "falcon_h1": ("falcon_h1", (20,), None),
    "strided": ("llama", (40, 20), None),
}


DOCUMENTS = [random_ids(100, 1), random_ids(301, 2)]


_RUN_AND_KILL = """
import os, signal, torch
from support.streamed_models import make
from support.streaming import evaluator_of
from evaluation.streaming.test_checkpoint import DOCUMENTS, RUNS
from needlework.evaluation.streaming.checkpoint import StreamCheckpoint
torch.set_num_threads(1)
for name, (model, sizes, attention) in RUNS.items():
    if os.fork() == 0:
        evaluator = evaluator_of(make(model), *sizes, attention=attention, separate_documents=True)
        checkpoint = StreamCheckpoint(os.path.join({folder!r}, name), "k", every_seconds=0)
        for i, chunk in enumerate(evaluator.chunks(DOCUMENTS, checkpoint=checkpoint)):
            if i == 9:
                os.kill(os.getpid(), signal.SIGKILL)
    assert os.wait()[1] == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folder with the checkpoints of killed runs."""
    folder = tmp_path_factory.mktemp("killed")
    code = _RUN_AND_KILL.format(folder=str(folder))
    path = {"PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **path}, check=True)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_gives_identical_results(name, killed):
    model_name, sizes, attention = RUNS[name]

    def run(checkpoint):
        accumulator = Accumulator()
        evaluator = evaluator_of(
            make(model_name), *sizes, attention=attention, separate_documents=True
        )
        rest = list(evaluator.chunks(DOCUMENTS, accumulator=accumulator, checkpoint=checkpoint))
        return rest, accumulator

    rest, resumed = run(StreamCheckpoint(killed / name, "k"))
    complete, accumulator = run(None)
    assert 0 < len(rest) < len(complete) == len(resumed)
    for column in ("document", "first_token", "tokens", "loss", "state_bytes"):
        assert resumed[column].tolist() == accumulator[column].tolist()
    assert resumed.loss == accumulator.loss
    assert resumed.positions().equals(accumulator.positions())
    for actual, expected in zip(rest, complete[-len(rest) :], strict=True):
        assert torch.equal(actual.losses, expected.losses)
    # A checkpoint of other settings is ignored.
    assert len(run(StreamCheckpoint(killed / name, "other"))[0]) == len(complete)


def test_the_checkpoint_is_deleted_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(StreamCheckpoint, "is_due", True)
    path, model, ids = tmp_path / "state", make("llama"), random_ids(200)
    whole = evaluator_of(model, 30).evaluate_streaming(ids, resume=path)
    assert not path.exists()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"state: is not a checkpoint .*; delete it"):
        evaluator_of(model, 30).evaluate_streaming(ids, resume=path)
    assert whole["total_tokens"] == 199


def test_checkpoints_of_other_texts_and_models_are_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(StreamCheckpoint, "is_due", True)
    caplog.set_level("INFO")
    path, model, ids = tmp_path / "state", make("llama"), random_ids(200)

    def interrupt(model):
        add_chunk, chunks = Accumulator.add, []

        def add(accumulator, chunk):
            chunks.append(chunk)
            if len(chunks) == 5:
                raise KeyboardInterrupt
            add_chunk(accumulator, chunk)

        evaluator = evaluator_of(model, 30)
        with monkeypatch.context() as patch:
            patch.setattr(Accumulator, "add", add)
            with pytest.raises(KeyboardInterrupt):
                evaluator.evaluate_streaming(ids, resume=path)
        assert [file.name for file in tmp_path.iterdir()] == ["state"]

    interrupt(model)
    other = ids.clone()
    other[140] = 3 if ids[140] > 3 else 4
    for text in (other, ids[:90]):
        with pytest.raises(
            ValueError, match=r"belongs to another text: document 0 .*; delete it, or name"
        ):
            evaluator_of(model, 30).evaluate_streaming(text, resume=path)
    whole = evaluator_of(model, 30).evaluate_streaming(ids)
    assert (
        evaluator_of(make("llama"), 30).evaluate_streaming(ids, resume=path)["loss"]
        == whole["loss"]
    )
    assert "resuming at document 0, token 120" in caplog.text
    interrupt(model)
    changed = make("llama")
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    whole = evaluator_of(changed, 30).evaluate_streaming(ids)
    results = evaluator_of(changed, 30).evaluate_streaming(ids, resume=path)
    assert results["loss"] == whole["loss"]
    assert "state: belongs to another model or other settings; starting over" in caplog.text
