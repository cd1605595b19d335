import time

import pytest
import torch

from needlework.attention.kernels import choice

CPU = torch.device("cpu")
SHAPE = ("torch.float32", 2, 1, 16, 16, 16, 1)


def kernels(**seconds):
    return lambda: {name: lambda s=s: time.sleep(s) for name, s in seconds.items()}


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    return tmp_path


def test_first_measurement_on_a_machine_stays():
    assert choice.faster(SHAPE, CPU, kernels(gather=0.05, compiled=0)) == "compiled"
    assert choice.faster(SHAPE, CPU, kernels(gather=0, compiled=0.05)) == "compiled"
    other = (*SHAPE[:-1], 2)
    assert choice.faster(other, CPU, kernels(gather=0, compiled=0.05)) == "gather"
    assert len([*choice.folder().iterdir()]) == 2


def test_of_two_processes_that_measure_the_first_decides():
    def slow():
        assert choice.faster(SHAPE, CPU, kernels(gather=0, compiled=0.05)) == "gather"
        return kernels(gather=0.05, compiled=0)()

    assert choice.faster(SHAPE, CPU, slow) == "gather"


def test_without_a_folder_to_write_a_kernel_is_still_chosen(cache_home):
    (cache_home / "needlework").write_text("")
    assert choice.faster(SHAPE, CPU, kernels(gather=0, compiled=0.05)) == "gather"


def test_environment_fixes_the_kernel(monkeypatch):
    assert choice.fixed() is None
    monkeypatch.setenv(choice.VARIABLE, "gather")
    assert choice.fixed() == "gather"
    monkeypatch.setenv(choice.VARIABLE, "flex")
    with pytest.raises(ValueError, match="'flex' is not a kernel; write gather or compiled"):
        choice.fixed()
