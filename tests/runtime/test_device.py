import subprocess
import sys

import pytest
from support.paths import PYTHONPATH

from needlework.runtime.device import device_name

_WITHOUT_TORCH = """
import sys
from needlework.runtime.device import device_name
print(device_name())
assert "torch" not in sys.modules
"""


def test_the_processor_is_named_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH],
        env={"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.strip()) > 2


def test_a_gpu_is_named_if_torch_sees_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    assert device_name() == "NVIDIA H200"
