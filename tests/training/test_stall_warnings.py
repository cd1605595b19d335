import pytest

from needlework.training.stall_warnings import warn_if_stalled


@pytest.mark.parametrize(
    ("losses", "gates", "warnings"),
    [
        ([3 - i / 10 for i in range(12)], [0.5 + i / 100 for i in range(12)], []),
        ([2 - (i % 2) - (i > 4) for i in range(12)], [0.5 + i / 100 for i in range(12)], []),
        ([2.0] * 12, [0.5 + i / 100 for i in range(12)], ["the loss has not fallen in the fi"]),
        ([3 - i / 10 for i in range(12)], [0.5 + i * 1e-5 for i in range(12)], ["no gate has ch"]),
    ],
)
def test_stall_warnings_appear_once(caplog, losses, gates, warnings):
    metrics = []
    for i, (loss, gate) in enumerate(zip(losses, gates, strict=True)):
        metrics.append({"step": i + 1, "loss": loss, "gate_layer0_head0": gate})
        warn_if_stalled(metrics)
    starts = [m[: len(w)] for m, w in zip(caplog.messages, warnings, strict=True)]
    assert starts == warnings
