"""Folders of the package and of the workflow's files, in a checkout or an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder `needlework/`."""

IS_CHECKOUT = (PACKAGE.parent / "Snakefile").is_file()
"""False where needlework was installed from a wheel, which holds the workflow's files itself."""

WORKFLOW = PACKAGE.parent if IS_CHECKOUT else PACKAGE / "_workflow"
"""The folder with Snakefile, workflow/, profiles/, envs/ and resources/."""
