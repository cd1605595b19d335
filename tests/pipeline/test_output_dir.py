"""The results folder, before a run."""

import pytest

from needlework.pipeline.output_dir import require_writable


def test_a_folder_that_can_be_created_is_fine_and_not_created(tmp_path):
    require_writable(tmp_path)
    require_writable(tmp_path / "results" / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(ValueError, match=r"results: is a file, but must be a folder; move the"):
        require_writable(tmp_path / "results" / "mine")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    # Root may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: is not writable; change its permissions"):
        require_writable(tmp_path / "results")
