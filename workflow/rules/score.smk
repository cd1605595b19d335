rule score_predictions:
    input:
        samples=samples_of_system,
        predictions=f"{RESULTS}/predictions/{{system}}.parquet",
    output:
        scores=f"{RESULTS}/scores/{{system}}.parquet",
    log:
        f"{RESULTS}/logs/score_predictions/{{system}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_predictions/{{system}}.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("score_predictions.py"),
        metrics=METRICS,
        tasks_with_depths=tasks_with_depths(),
        thought_format=thought_format,
    script:
        "../scripts/score_predictions.py"


rule summarize_scores:
    input:
        scores=tables_of("scores"),
        predictions=tables_of("predictions"),
    output:
        summary=f"{RESULTS}/summary.parquet",
        csv=report(
            f"{RESULTS}/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"table": "Summary: accuracy, interval, density, cache"},
        ),
        depths=f"{RESULTS}/depth_scores.parquet",
        needles=f"{RESULTS}/needles.parquet",
        needles_csv=report(
            f"{RESULTS}/needles.csv",
            caption="../report/needles.rst",
            category="Tables",
            labels={"table": "Needles: which of several are found"},
        ),
    log:
        f"{RESULTS}/logs/summarize_scores.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_scores.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("summarize_scores.py"),
    script:
        "../scripts/summarize_scores.py"


rule find_effective_length:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        means=f"{RESULTS}/mean_scores.parquet",
        lengths=f"{RESULTS}/effective_length.parquet",
        csv=report(
            f"{RESULTS}/effective_length.csv",
            caption="../report/effective_length.rst",
            category="Tables",
            labels={"table": "Effective length"},
        ),
        means_csv=report(
            f"{RESULTS}/mean_scores.csv",
            caption="../report/mean_scores.rst",
            category="Tables",
            labels={"table": "Scores: mean over tasks"},
        ),
    log:
        f"{RESULTS}/logs/find_effective_length.log",
    benchmark:
        f"{RESULTS}/benchmarks/find_effective_length.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("find_effective_length.py"),
        metrics=METRICS,
        score=experiment.effective_length.score,
        share=experiment.effective_length.share,
    script:
        "../scripts/find_effective_length.py"


rule list_failures:
    input:
        measurements=tables_of("measurements", api_systems()),
        predictions=tables_of("predictions", api_systems()),
    output:
        csv=report(
            f"{RESULTS}/failures.csv",
            caption="../report/failures.rst",
            category="Tables",
            labels={"table": "Failures: samples that an API did not answer, or cut"},
        ),
    log:
        f"{RESULTS}/logs/list_failures.log",
    benchmark:
        f"{RESULTS}/benchmarks/list_failures.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("list_failures.py"),
    script:
        "../scripts/list_failures.py"


rule sum_api_usage:
    input:
        measurements=tables_of("measurements", api_systems()),
        predictions=tables_of("predictions", api_systems()),
    output:
        csv=report(
            f"{RESULTS}/api_usage.csv",
            caption="../report/api_usage.rst",
            category="Tables",
            labels={"table": "API usage: requests, tokens and price"},
        ),
    log:
        f"{RESULTS}/logs/sum_api_usage.log",
    benchmark:
        f"{RESULTS}/benchmarks/sum_api_usage.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("sum_api_usage.py"),
    script:
        "../scripts/sum_api_usage.py"


rule compare_systems:
    input:
        scores=tables_of("scores"),
        predictions=tables_of("predictions"),
    output:
        json=f"{RESULTS}/comparison.json",
        markdown=f"{RESULTS}/comparison.md",
        csv=report(
            f"{RESULTS}/comparison.csv",
            caption="../report/comparison.rst",
            category="Tables",
            labels={"table": "Comparison with the baseline, paired"},
        ),
    log:
        f"{RESULTS}/logs/compare_systems.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_systems.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("compare_systems.py"),
        baseline=experiment.baseline,
        metrics=METRICS,
    script:
        "../scripts/compare_systems.py"


rule compare_speed:
    input:
        measurements=tables_of("measurements"),
        predictions=tables_of("predictions"),
    output:
        json=f"{RESULTS}/comparison_speed.json",
        markdown=f"{RESULTS}/comparison_speed.md",
        csv=report(
            f"{RESULTS}/comparison_speed.csv",
            caption="../report/comparison_speed.rst",
            category="Tables",
            labels={"table": "Speed, memory, price against the baseline (measured)"},
        ),
    log:
        f"{RESULTS}/logs/compare_speed.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_speed.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("compare_speed.py"),
        baseline=experiment.baseline,
    script:
        "../scripts/compare_speed.py"


rule record_experiment:
    output:
        experiment=report(
            f"{RESULTS}/experiment.yaml",
            caption="../report/experiment.rst",
            category="Experiment",
            labels={"table": "Configuration, defaults filled in"},
        ),
        software=report(
            f"{RESULTS}/software.csv",
            caption="../report/software.rst",
            category="Experiment",
            labels={"table": "Software versions"},
        ),
    log:
        f"{RESULTS}/logs/record_experiment.log",
    benchmark:
        f"{RESULTS}/benchmarks/record_experiment.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1000 * attempt,
        runtime=10,
    params:
        code=code_version("record_experiment.py"),
        experiment=dump(experiment),
    script:
        "../scripts/record_experiment.py"
