"""Fixtures: samples of three tasks, and answers to them."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import TypeAdapter
from support.paths import DATA
from support.tokenizer_fixtures import *  # noqa: F403

from needlework.config.tasks.registry import AnyTask
from needlework.tasks.generate import Sampler, make_samples

TASKS = {
    "niah_multivalue": {},
    "cwe": {},
    "qa_1": {"path": str(DATA / "squad-small.json")},
}
COUNT = 6


@pytest.fixture(scope="module", params=TASKS)
def tables(request, byte_tokenizer, tmp_path_factory) -> tuple[Path, Path]:
    """Samples of a task, and answers in another order: right, wrong, half right, odd."""
    name, folder = request.param, tmp_path_factory.mktemp("tables")
    task = TypeAdapter(AnyTask).validate_python({"type": name, **TASKS[name]})
    sampler = Sampler(
        task, byte_tokenizer, task_name=name, length=1500, depths=[0, 50, 100], seed=1
    )
    samples = make_samples(sampler, COUNT)
    outputs = samples["outputs"].to_list()
    answers = [
        ", ".join(outputs[0]),
        "nothing of the kind é",
        f"It is {outputs[2][0].upper()}.",
        "",
        "\x00" + "\x07".join(outputs[4]) + " ",
        outputs[5][0][:3] + "\n" + outputs[5][0][3:],
    ]
    predictions = samples.select("task", "length", "sample").with_columns(
        pl.lit("dense").alias("system"), pl.Series("prediction", answers)
    )
    samples.write_parquet(folder / "samples.parquet")
    predictions.reverse().write_parquet(folder / "predictions.parquet")
    return folder / "samples.parquet", folder / "predictions.parquet"
