# A figure is a rule here, a function in needlework/figures/<name>.py and a caption in
# workflow/report/<name>.rst. The function's arguments are the rule's inputs, params and wildcards.


# The base of every figure's rule; it makes nothing itself.
rule plot_figure:
    log:
        f"{RESULTS}/logs/plot_figure.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    script:
        "../scripts/plot_figure.py"


use rule plot_figure as plot_heatmap with:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        **figure("heatmap/{task}", "Depth by length: {task}", task=tasks_with_depths()),
    log:
        f"{RESULTS}/logs/plot_heatmap/{{task}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_heatmap/{{task}}.tsv"
    params:
        **figure_code("heatmap"),
        length_unit=experiment.length_unit,
        metric=task_metric,


use rule plot_figure as plot_accuracy with:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        **figure("accuracy", "Accuracy by length"),
    log:
        f"{RESULTS}/logs/plot_accuracy.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_accuracy.tsv"
    params:
        **figure_code("accuracy"),
        length_unit=experiment.length_unit,
        metrics=METRICS,


use rule plot_figure as plot_effective_length with:
    input:
        means=f"{RESULTS}/mean_scores.parquet",
        lengths=f"{RESULTS}/effective_length.parquet",
    output:
        **figure(
            "effective_length", "Effective length", when=len(experiment.lengths) > 1
        ),
    log:
        f"{RESULTS}/logs/plot_effective_length.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_effective_length.tsv"
    params:
        **figure_code("effective_length"),
        length_unit=experiment.length_unit,
        share=experiment.effective_length.share,


use rule plot_figure as plot_cost with:
    input:
        measurements=tables_of("measurements"),
        predictions=tables_of("predictions"),
    output:
        **figure("cost", "Prefill time and cache by length"),
    log:
        f"{RESULTS}/logs/plot_cost.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_cost.tsv"
    params:
        **figure_code("cost"),
        length_unit=experiment.length_unit,


use rule plot_figure as plot_memory with:
    input:
        measurements=tables_of("measurements", local_systems()),
    output:
        **figure("memory", "Memory over time", when=local_systems()),
    log:
        f"{RESULTS}/logs/plot_memory.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_memory.tsv"
    params:
        **figure_code("memory"),
        length_unit=experiment.length_unit,


use rule plot_figure as plot_training with:
    input:
        metrics=list(training_tables().values()),
    output:
        **figure("training", "Training curves", when=training_tables()),
    log:
        f"{RESULTS}/logs/plot_training.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_training.tsv"
    params:
        **figure_code("training"),
        models=list(training_tables()),


use rule plot_figure as plot_training_cost with:
    input:
        measurements=list(training_tables("measurements/training").values()),
    output:
        **figure("training_cost", "Training speed and memory", when=training_tables()),
    log:
        f"{RESULTS}/logs/plot_training_cost.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_training_cost.tsv"
    params:
        **figure_code("training_cost"),
        models=list(training_tables()),


use rule plot_figure as plot_finetuning with:
    input:
        depths=f"{RESULTS}/depth_scores.parquet",
    output:
        **figure(
            "finetuning",
            "Accuracy by depth before and after fine-tuning",
            when=tasks_with_depths() and before_finetuning(),
        ),
    log:
        f"{RESULTS}/logs/plot_finetuning.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_finetuning.tsv"
    params:
        **figure_code("finetuning"),
        before=before_finetuning(),
        metrics=METRICS,


use rule plot_figure as plot_thinking with:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        **figure("thinking", "Accuracy by thinking budget", when=thinking_series()),
    log:
        f"{RESULTS}/logs/plot_thinking.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_thinking.tsv"
    params:
        **figure_code("thinking"),
        length_unit=experiment.length_unit,
        metrics=METRICS,
        budgets={name: experiment.thinking_budget(name) for name in thinking_series()},
        series=thinking_series(),


use rule plot_figure as plot_density with:
    input:
        densities=tables_of("densities", sparse_systems()),
    output:
        **figure("density", "Density by layer", when=sparse_systems()),
    log:
        f"{RESULTS}/logs/plot_density.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_density.tsv"
    params:
        **figure_code("density"),
        length_unit=experiment.length_unit,


use rule plot_figure as plot_pareto with:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        **figure(
            "pareto", "Accuracy by measured density", when=len(sparse_systems()) > 1
        ),
    log:
        f"{RESULTS}/logs/plot_pareto.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_pareto.tsv"
    params:
        **figure_code("pareto"),
        length_unit=experiment.length_unit,
        metrics=METRICS,
        dense=dense_system(),
        families=sparse_families(),


use rule plot_figure as plot_stream_perplexity with:
    input:
        positions=f"{RESULTS}/stream_positions.parquet",
        streams=f"{RESULTS}/streams.csv",
    output:
        **figure("stream_perplexity", "Perplexity by position", when=experiment.streams),
    log:
        f"{RESULTS}/logs/plot_stream_perplexity.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_stream_perplexity.tsv"
    params:
        **figure_code("stream_perplexity"),


use rule plot_figure as plot_stream_cost with:
    input:
        chunks=stream_tables("streams"),
        measurements=stream_tables("measurements/streams"),
    output:
        **figure("stream_cost", "Memory and speed by position", when=experiment.streams),
    log:
        f"{RESULTS}/logs/plot_stream_cost.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_stream_cost.tsv"
    params:
        **figure_code("stream_cost"),
