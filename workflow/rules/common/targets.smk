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
    mapped = [name for name, task in experiment.tasks.items() if task.has_depths]
    figures = [*(f"heatmap/{task}" for task in mapped), "accuracy", "cost"]
    figures += ["effective_length"] if len(experiment.lengths) > 1 else []
    figures += ["memory"] if local_systems() else []
    figures += ["training", "training_cost"] if training_tables() else []
    figures += ["finetuning"] if mapped and before_finetuning() else []
    figures += ["density"] if sparse_systems() else []
    figures += ["pareto"] if len(sparse_systems()) > 1 else []
    figures += ["stream_perplexity", "stream_cost"] if experiment.streams else []
    wanted = expand(
        f"{RESULTS}/figures/{{figure}}.{{kind}}",
        figure=figures,
        kind=["html", "svg", "png"],
    )
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
