"""What a run makes: figures, tables and the rest of the report."""


def tables():
    """Tables of the report, the most important first."""
    names = ["effective_length"] if len(experiment.lengths) > 1 else []
    if experiment.baseline is not None and len(experiment.systems) > 1:
        names += ["comparison", "comparison_speed"]
    names += ["streams"] if experiment.streams else []
    names += ["api_usage", "failures"] if api_systems() else []
    names += ["mean_scores"] if len(experiment.lengths) > 1 else []
    return [f"{RESULTS}/{name}.csv" for name in (*names, "plan", "needles", "summary")]


def targets():
    """Files that `rule all` makes."""
    files = ["tables.html", "experiment.yaml", "software.csv"]
    files += [f"training_rows/{rows}.csv" for rows in checked_rows()]
    if experiment.package is not None:
        files += [f"package/{experiment.package}/README.md"]
    return [*FIGURES, *tables(), *(f"{RESULTS}/{file}" for file in files)]
