"""`needlework init`: the experiment file that it writes for a model."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.paths import TINY
from typer.testing import CliRunner

from needlework.cli import init
from needlework.cli.app import app
from needlework.cli.warnings import warnings
from needlework.config.devices import Device, devices
from needlework.config.parsing.load import read_experiment
from needlework.planning.plan import plan
from needlework.tasks.preflight import preflight

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device that `init` plans for, instead of measuring this machine."""
    monkeypatch.chdir(tmp_path)
    device = devices()["cpu"]
    monkeypatch.setattr(init, "find_device", lambda name: device)
    return device


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with few positions, which are planned fast."""
    return checkpoint(tmp_path / "needlework-tiny", max_position_embeddings=2048)


def write(model: Path | str, *options: str, file: str = "mine.yaml") -> str:
    """Run the command; what it prints."""
    arguments = ["init", file, "--model", str(model), *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def checkpoint(folder: Path, **config) -> Path:
    """The tiny model with another config."""
    shutil.copytree(TINY, folder)
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | config))
    return folder


def test_the_file_is_a_valid_experiment(model):
    printed = write(model)
    experiment = read_experiment("mine.yaml")
    preflight(experiment)
    assert list(warnings(experiment)) == []
    assert experiment.experiment == "mine"
    assert list(experiment.systems) == ["dense", "sketchwalk", "random"]
    assert list(experiment.tasks) == ["passkey", "niah_single_1"]
    assert list(experiment.models) == ["needlework-tiny"]
    assert (experiment.lengths, experiment.samples) == ([512, 1024, 2048], 11)
    assert printed.splitlines()[-1] == "Next: needlework run mine.yaml"


def test_lengths_are_powers_of_two_within_the_positions(tmp_path):
    write(checkpoint(tmp_path / "model", max_position_embeddings=1500))
    assert read_experiment("mine.yaml").lengths == [512, 1024]
    write(checkpoint(tmp_path / "small", max_position_embeddings=300), "--force")
    assert read_experiment("mine.yaml").lengths == [256]


@pytest.mark.parametrize("seconds", [500, 100])
def test_the_plan_takes_at_most_an_hour(model, machine, monkeypatch, seconds):
    monkeypatch.setattr(init, "MAX_SECONDS", seconds)
    write(model)
    experiment = read_experiment("mine.yaml")
    assert experiment.lengths == [512, 1024, 2048][: len(experiment.lengths)]
    assert plan(experiment, machine, advise=False)["seconds"].sum() <= seconds


def test_a_slow_machine_gets_fewer_samples(model, monkeypatch):
    monkeypatch.setattr(init, "MAX_SECONDS", 1)
    write(model)
    experiment = read_experiment("mine.yaml")
    assert (experiment.samples, experiment.depths) == (4, [0, 33.333, 66.667, 100])
    assert experiment.lengths == [512]


def test_a_chat_model_uses_its_template(tmp_path):
    folder = checkpoint(tmp_path / "SmolLM2-135M-Instruct", max_position_embeddings=1024)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    (folder / "chat_template.jinja").write_text(template)
    write(folder)
    model = read_experiment("mine.yaml").models["SmolLM2-135M-Instruct"]
    assert model.chat_template


def test_a_gpu_gets_half_precision_and_its_device(model, monkeypatch):
    monkeypatch.setattr(init, "find_device", lambda name: devices()["h200"])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    write(model)
    experiment = read_experiment("mine.yaml")
    assert experiment.device == "h200"
    assert experiment.models["needlework-tiny"].dtype == "bfloat16"


def test_a_checkpoint_with_its_own_attention_is_only_evaluated_as_it_is(tmp_path):
    folder = checkpoint(tmp_path / "model", needlework_attention="other")
    with pytest.raises(ValueError, match="other"):
        write(folder)
    model = init._Model(str(TINY), 1024, False, True, "float32")
    text = init._render(Path("mine.yaml"), "m", model, init.Grid([512], 4, None), devices()["cpu"])
    assert list(yaml.safe_load(text)["systems"]) == ["dense"]


def test_an_existing_file_is_kept_unless_forced(model):
    Path("mine.yaml").write_text("precious")
    with pytest.raises(ValueError, match=r"^mine\.yaml: exists already; choose another name, or"):
        write(model)
    assert Path("mine.yaml").read_text() == "precious"
    write(model, "--force")
    assert Path("mine.yaml").read_text() != "precious"


def test_results_of_another_experiment_are_not_reused(model):
    Path("results/mine").mkdir(parents=True)
    write(model)
    assert read_experiment("mine.yaml").experiment == "mine-2"


@pytest.mark.parametrize("path", ["no/such/folder", "."])
def test_a_wrong_path_is_one_line_and_leaves_no_file(path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=rf"^{path}: ") as error:
        write(path)
    assert "\n" not in str(error.value)
    assert not Path("mine.yaml").exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [("SmolLM2-135M", "SmolLM2-135M"), ("7b chat!", "b-chat-"), ("123", "model")],
)
def test_names_are_made_valid(text, name):
    assert init._name(text) == name
