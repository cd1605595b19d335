"""Places that tests read from."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
ESSAYS = DATA / "essays"
TINY = ROOT / "resources/needlework-tiny"

PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
"""For a process that imports needlework or a module of the tests."""
