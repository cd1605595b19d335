import pytest
import torch

from needlework.attention.kernels import choice

CPU = torch.device("cpu")
CASE = ("torch.float32", 2, 1, 16, 16, 16, 1)


class Clock:
    """Seconds that only the kernels of a test use."""

    now = 0.0

    def __call__(self):
        return self.now

    def kernels(self, gather, compiled):
        """Each call takes the next of the given seconds, then the last again."""

        def call(seconds):
            left = [*reversed(seconds)]

            def advance():
                self.now += left.pop() if len(left) > 1 else left[0]

            return advance

        return {"gather": call(gather), "compiled": call(compiled)}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(choice, "perf_counter", clock)
    return clock


@pytest.fixture
def kernels(clock):
    return lambda gather, compiled: clock.kernels([gather], [compiled])


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    return tmp_path


def test_first_clear_measurement_on_a_machine_stays(kernels):
    assert choice.faster(CASE, CPU, kernels(gather=0.05, compiled=0.01)) == "compiled"
    assert choice.faster(CASE, CPU, kernels(gather=0.01, compiled=0.05)) == "compiled"
    other = (*CASE[:-1], 2)
    assert choice.faster(other, CPU, kernels(gather=0.01, compiled=0.05)) == "gather"
    assert len([*choice.folder().iterdir()]) == 2


def test_of_two_processes_that_measure_the_first_decides(kernels):
    slow = kernels(gather=0.05, compiled=0.01)

    def gather():
        assert choice.faster(CASE, CPU, kernels(gather=0.01, compiled=0.05)) == "gather"
        slow["gather"]()

    assert choice.faster(CASE, CPU, {**slow, "gather": gather}) == "gather"


def test_a_measurement_whose_rounds_disagree_does_not_stay(clock):
    loaded = clock.kernels([0.1], [30, 0.05, 0.5, 0.5, 0.05, 0.5])
    assert choice.faster(CASE, CPU, loaded) == "gather"
    assert choice.faster(CASE, CPU, clock.kernels([0.1], [30, 0.05])) == "compiled"
    assert choice.faster(CASE, CPU, loaded) == "compiled"


def test_without_a_folder_to_write_a_kernel_is_still_chosen(cache_home, kernels):
    (cache_home / "needlework").write_text("")
    assert choice.faster(CASE, CPU, kernels(gather=0.01, compiled=0.05)) == "gather"


def test_environment_fixes_the_kernel(monkeypatch):
    assert choice.fixed() is None
    monkeypatch.setenv(choice.VARIABLE, "gather")
    assert choice.fixed() == "gather"
    monkeypatch.setenv(choice.VARIABLE, "flex")
    with pytest.raises(ValueError, match="'flex' is not a kernel; write gather or compiled"):
        choice.fixed()


# Seconds of each call of both kernels, the first to compile; a slow call is other load.
@pytest.mark.parametrize(
    ("gather", "compiled", "name"),
    [
        ([1], [30, 0.9], "gather"),
        ([1], [30, 0.8], "compiled"),
        ([0.1], [30, 0.08, 0.08, 0.9, 0.08, 0.08], "compiled"),
        ([0.1, 0.9, 0.1], [30, 0.1], "gather"),
    ],
)
def test_a_kernel_that_compiles_has_to_be_clearly_faster(clock, gather, compiled, name):
    assert choice.faster(CASE, CPU, clock.kernels(gather, compiled)) == name


def test_a_measurement_takes_few_seconds_besides_compiling(clock):
    choice.faster(CASE, CPU, clock.kernels([3], [30, 3]))
    assert clock.now == 30 + 3 + 3 * 6
    choice.faster((*CASE, 2), CPU, clock.kernels([0.5], [30, 0.25]))
    assert clock.now == 51 + 30.5 + 5 * 0.75
