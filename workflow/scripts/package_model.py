"""Package a model with its card, ready to publish."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from needlework.models.card import card
from needlework.pipeline.provenance import read_record, sha256_file
from needlework.pipeline.stage import stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with stage(snakemake) as s:
    for name, path in s.output_paths.items():
        if name != "card":
            source = next(file for file in s.input.model if Path(file).name == Path(path).name)
            shutil.copyfile(source, getattr(s.output, name))
    made = read_record(s.input.model[0])
    if made is None:
        raise ValueError(f"{s.input.model[0]}: has no provenance record; delete it and run again")
    facts = {
        "experiment": s.params.experiment,
        "seed": s.params.seed,
        "code version": made["code"]["version"],
        "commit": made["git"]["commit"] if made["git"] else "none",
        "device": made["device"],
        "torch": made["packages"]["torch"],
        "transformers": made["packages"]["transformers"],
    }
    text = card(
        f"needlework-{s.wildcards.model}",
        s.params.pretrain,
        summary=pl.read_parquet(s.input.summary).filter(pl.col("system").is_in(s.params.systems)),
        metrics=pl.read_parquet(s.input.metrics),
        measurements=pl.read_parquet(s.input.measurements),
        hashes={Path(path).name: sha256_file(path) for path in s.input.model},
        versions=facts,
    )
    Path(s.output.card).write_text(text)
