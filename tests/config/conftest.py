from pathlib import Path

import pytest
from support.experiment_file import write_checkpoint


@pytest.fixture
def experiment_folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with everything that EXPERIMENT refers to."""
    write_checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
