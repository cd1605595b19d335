"""What a run ends in: the tables, the figures and the rest of the report."""


def tables():
    """The tables that the report shows, the most telling first."""
    paired = experiment.baseline is not None and len(experiment.systems) > 1
    names = ["effective_length"] if len(experiment.lengths) > 1 else []
    names += ["comparison", "comparison_speed"] if paired else []
    names += ["streams"] if experiment.streams else []
    names += ["failures"] if api_systems() else []
    names += ["mean_scores"] if len(experiment.lengths) > 1 else []
    return [f"{RESULTS}/{name}.csv" for name in (*names, "plan", "needles", "summary")]


def targets():
    """Everything that `rule all` wants."""
    wanted = [*FIGURES]
    wanted += [f"{RESULTS}/{name}" for name in ("summary.parquet", "summary.csv")]
    wanted += [f"{RESULTS}/{name}" for name in ("experiment.yaml", "software.csv")]
    wanted += [f"{RESULTS}/plan.csv"]
    wanted += [f"{RESULTS}/tables.html"]
    if experiment.baseline is not None and len(experiment.systems) > 1:
        wanted += [f"{RESULTS}/{name}" for name in ("comparison.json", "comparison.md")]
        wanted += [f"{RESULTS}/comparison_speed.csv"]
    wanted += [f"{RESULTS}/training_rows/{rows}.csv" for rows in checked_rows()]
    if api_systems():
        wanted += [f"{RESULTS}/failures.csv"]
    if experiment.streams:
        wanted += [f"{RESULTS}/streams.csv"]
    if experiment.package is not None:
        wanted += [f"{RESULTS}/package/{experiment.package}/README.md"]
    return wanted
