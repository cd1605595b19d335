"""The machine of the tests: what it lacks is a failure in CI, and left out by name elsewhere."""

import os
import shutil

import pytest
from hypothesis import settings

CI = os.environ.get("CI") == "true"
# Examples take longer on a busy machine; no test is about time.
settings.register_profile("needlework", deadline=None)
settings.load_profile("needlework")
# Before torch is imported: workers of pytest-xdist would take turns on the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Long prefills would measure kernels and keep the choice in the user's cache.
os.environ["NEEDLEWORK_ATTENTION_KERNEL"] = "gather"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees no GPU, also where there is one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def _left_out() -> dict[str, str]:
    """Marker -> why its tests are not run here. Nothing is ever left out in CI."""
    if CI:
        return {}
    reasons = {}
    if os.environ.get("NEEDLEWORK_TEST_SLURM") != "1":
        reasons["slurm"] = (
            "they start a Slurm of their own, as root, on this machine; "
            "NEEDLEWORK_TEST_SLURM=1 runs them"
        )
    if shutil.which("chromium") is None:
        reasons["browser"] = "no chromium on the PATH; apt-get install chromium"
    return reasons


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = _left_out()
    left_out = [item for item in items if any(map(item.get_closest_marker, reasons))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker, why in _left_out().items():
        terminalreporter.write_line(f"{marker} tests are left out here: {why}", yellow=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    return _no_skip_in_ci(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    return _no_skip_in_ci(report)


def _no_skip_in_ci(report):
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
