import resource
from multiprocessing import get_context

import psutil
import pytest
import torch

from needlework.runtime.memory import is_out_of_memory, limit_memory, peak_memory_bytes


def test_a_failed_allocation_differs_from_other_errors():
    with pytest.raises(RuntimeError) as out_of_memory:
        torch.empty(2**62, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert is_out_of_memory(out_of_memory.value)
    assert not is_out_of_memory(other.value)


def test_peak_memory_includes_allocated_tensors():
    tensor = torch.ones(2**26)
    assert peak_memory_bytes() >= tensor.nbytes


def _allocate_without_end() -> str:
    """Allocate more memory than the machine has in pieces that are never touched."""
    piece_bytes, tensors = 2**28, []
    limit_before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        limit_memory()
        for _ in range(4 * psutil.virtual_memory().total // piece_bytes):
            tensors.append(torch.empty(piece_bytes, dtype=torch.uint8))
    except (RuntimeError, MemoryError) as error:
        return "raised" if is_out_of_memory(error) else str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limit_before)
    return "allocated everything"


def test_memory_that_runs_out_raises_instead_of_killing_the_process():
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(_allocate_without_end) == "raised"
