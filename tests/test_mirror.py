"""Tests mirror the package: each module has its tests, each folder of tests its package."""

import ast
from pathlib import Path

from support.paths import ROOT

PACKAGE, TESTS = ROOT / "needlework", ROOT / "tests"
THROUGH = {
    "attention/tensor_parallel": "evaluation/generation/test_answers",
    "cli/lineage_tree": "cli/test_app",
    "cli/one_off": "cli/test_niah",
    "cli/terminal": "cli/test_app",
    "config/errors": "config/parsing/test_load",
    "config/models/derived": "config/validation/test_models",
    "config/models/pretrained": "config/validation/test_models",
    "config/models/tokenizer_files": "config/validation/test_models",
    "config/paths": "config/validation/test_experiment",
    "config/tasks/haystack": "tasks/test_generate",
    "config/tasks/templates": "tasks/test_templates",
    "evaluation/answer_tables": "evaluation/generation/test_answers",
    "figures/style/step_curves": "figures/test_training",
    "finetune_data/answers": "finetune_data/test_rows",
    "models/api/chunks": "models/api/test_client",
    "runtime/locations": "pipeline/test_code_version",
    "runtime/progress": "tasks/test_generate",
    "sources/records": "tasks/formats/test_dataset",
    "sources/tokenizer_conversion": "tasks/prompts/test_tokenizer",
    "tasks/formats/validation_errors": "tasks/formats/test_question_sets",
    "tasks/haystacks/answers": "tasks/test_answers_elsewhere",
    "tasks/haystacks/haystack": "tasks/test_generate",
    "tasks/haystacks/needle_insertion": "tasks/test_generate",
    "tasks/haystacks/needle_values": "tasks/test_generate",
    "tasks/needles": "tasks/test_generate",
    "tasks/sample_table": "tasks/test_generate",
    "training/state": "training/test_run_resume",
}
"""Module that no test imports -> the tests of it through a module that imports it."""


def modules() -> list[str]:
    """Modules as paths in the package, without suffix."""
    files = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    return [str(file.with_suffix("")) for file in files if not file.stem.startswith("__")]


def files_of_tests() -> list[str]:
    """Test files as paths in tests/, without suffix."""
    files = [path for path in sorted(TESTS.rglob("test_*.py")) if "workflow" not in path.parts]
    return [str(file.relative_to(TESTS).with_suffix("")) for file in files]


def is_of(test: str, module: str) -> bool:
    """Whether a file is `test_NAME` or `test_NAME_subject` in the folder of the module."""
    path = Path(module)
    own = str(path.with_name(f"test_{path.name}"))
    return test == own or test.startswith(f"{own}_")


def imports(test: str) -> set[str]:
    """Modules that a test file imports, and names in them, with dots."""
    nodes = ast.walk(ast.parse((TESTS / f"{test}.py").read_text()))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    return names | {str(node.module) for node in froms}


def test_every_module_has_tests():
    files = files_of_tests()
    imported = set().union(*map(imports, files))
    untested = {
        module
        for module in modules()
        if not any(is_of(test, module) for test in files)
        and f"needlework.{module.replace('/', '.')}" not in imported
    }
    assert untested == set(THROUGH), "write tests/FOLDER/test_NAME.py, or name them in THROUGH"
    assert set(THROUGH.values()) <= set(files)


def test_every_folder_of_tests_is_one_of_the_package():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert all((PACKAGE / folder).is_dir() for folder in folders - {Path("workflow")})
