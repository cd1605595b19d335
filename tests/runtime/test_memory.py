import pytest
import torch

from needlework.runtime.memory import is_out_of_memory, peak_memory_bytes


def test_an_allocation_that_fails_is_told_from_other_faults():
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**62, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as unlike:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert is_out_of_memory(full.value)
    assert not is_out_of_memory(unlike.value)


def test_peak_memory_has_room_for_what_was_held():
    held = torch.ones(2**26)
    assert peak_memory_bytes() >= held.nbytes
