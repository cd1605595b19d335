rule plot_heatmap:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        html=report(
            f"{RESULTS}/figures/heatmap/{{task}}.html",
            caption="../report/heatmap.rst",
            category="Figures",
            labels={"figure": "Depth by length: {task}", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/heatmap/{{task}}.svg",
            caption="../report/heatmap.rst",
            category="Figures",
            labels={"figure": "Depth by length: {task}", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/heatmap/{{task}}.png",
            caption="../report/heatmap.rst",
            category="Figures",
            labels={"figure": "Depth by length: {task}", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_heatmap/{{task}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_heatmap/{{task}}.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_heatmap.py"),
        length_unit=experiment.length_unit,
        task=lambda w: w.task,
        metric=lambda w: experiment.tasks[w.task].metric,
    script:
        "../scripts/plot_heatmap.py"


rule plot_accuracy:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        html=report(
            f"{RESULTS}/figures/accuracy.html",
            caption="../report/accuracy.rst",
            category="Figures",
            labels={"figure": "Accuracy by length", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/accuracy.svg",
            caption="../report/accuracy.rst",
            category="Figures",
            labels={"figure": "Accuracy by length", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/accuracy.png",
            caption="../report/accuracy.rst",
            category="Figures",
            labels={"figure": "Accuracy by length", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_accuracy.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_accuracy.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_accuracy.py"),
        length_unit=experiment.length_unit,
        metrics={name: task.metric for name, task in experiment.tasks.items()},
    script:
        "../scripts/plot_accuracy.py"


rule plot_effective_length:
    input:
        means=f"{RESULTS}/mean_scores.parquet",
        lengths=f"{RESULTS}/effective_length.parquet",
    output:
        html=report(
            f"{RESULTS}/figures/effective_length.html",
            caption="../report/effective_length.rst",
            category="Figures",
            labels={"figure": "Effective length", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/effective_length.svg",
            caption="../report/effective_length.rst",
            category="Figures",
            labels={"figure": "Effective length", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/effective_length.png",
            caption="../report/effective_length.rst",
            category="Figures",
            labels={"figure": "Effective length", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_effective_length.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_effective_length.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_effective_length.py"),
        length_unit=experiment.length_unit,
        share=experiment.effective_length.share,
    script:
        "../scripts/plot_effective_length.py"


rule plot_cost:
    input:
        measurements=cells("measurements"),
        predictions=cells("predictions"),
    output:
        html=report(
            f"{RESULTS}/figures/cost.html",
            caption="../report/cost.rst",
            category="Figures",
            labels={
                "figure": "Prefill time and cache by length",
                "format": "interactive",
            },
        ),
        svg=report(
            f"{RESULTS}/figures/cost.svg",
            caption="../report/cost.rst",
            category="Figures",
            labels={"figure": "Prefill time and cache by length", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/cost.png",
            caption="../report/cost.rst",
            category="Figures",
            labels={"figure": "Prefill time and cache by length", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_cost.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_cost.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_cost.py"),
        length_unit=experiment.length_unit,
    script:
        "../scripts/plot_cost.py"


rule plot_memory:
    input:
        measurements=cells("measurements", local_systems()),
    output:
        html=report(
            f"{RESULTS}/figures/memory.html",
            caption="../report/memory.rst",
            category="Figures",
            labels={
                "figure": "Memory over time",
                "format": "interactive",
            },
        ),
        svg=report(
            f"{RESULTS}/figures/memory.svg",
            caption="../report/memory.rst",
            category="Figures",
            labels={"figure": "Memory over time", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/memory.png",
            caption="../report/memory.rst",
            category="Figures",
            labels={"figure": "Memory over time", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_memory.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_memory.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_memory.py"),
        length_unit=experiment.length_unit,
    script:
        "../scripts/plot_memory.py"


rule plot_training:
    input:
        metrics=list(training_tables().values()),
    output:
        html=report(
            f"{RESULTS}/figures/training.html",
            caption="../report/training.rst",
            category="Figures",
            labels={"figure": "Training curves", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/training.svg",
            caption="../report/training.rst",
            category="Figures",
            labels={"figure": "Training curves", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/training.png",
            caption="../report/training.rst",
            category="Figures",
            labels={"figure": "Training curves", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_training.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_training.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_training.py"),
        models=list(training_tables()),
        steps=training_steps(),
    script:
        "../scripts/plot_training.py"


rule plot_training_cost:
    input:
        measurements=list(training_tables("measurements/training").values()),
    output:
        html=report(
            f"{RESULTS}/figures/training_cost.html",
            caption="../report/training_cost.rst",
            category="Figures",
            labels={"figure": "Training speed and memory", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/training_cost.svg",
            caption="../report/training_cost.rst",
            category="Figures",
            labels={"figure": "Training speed and memory", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/training_cost.png",
            caption="../report/training_cost.rst",
            category="Figures",
            labels={"figure": "Training speed and memory", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_training_cost.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_training_cost.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_training_cost.py"),
        models=list(training_tables()),
    script:
        "../scripts/plot_training_cost.py"


rule plot_finetuning:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        html=report(
            f"{RESULTS}/figures/finetuning.html",
            caption="../report/finetuning.rst",
            category="Figures",
            labels={
                "figure": "Accuracy by depth before and after fine-tuning",
                "format": "interactive",
            },
        ),
        svg=report(
            f"{RESULTS}/figures/finetuning.svg",
            caption="../report/finetuning.rst",
            category="Figures",
            labels={
                "figure": "Accuracy by depth before and after fine-tuning",
                "format": "SVG",
            },
        ),
        png=report(
            f"{RESULTS}/figures/finetuning.png",
            caption="../report/finetuning.rst",
            category="Figures",
            labels={
                "figure": "Accuracy by depth before and after fine-tuning",
                "format": "PNG",
            },
        ),
    log:
        f"{RESULTS}/logs/plot_finetuning.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_finetuning.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_finetuning.py"),
        before=before_finetuning(),
        metrics={name: task.metric for name, task in experiment.tasks.items()},
    script:
        "../scripts/plot_finetuning.py"


rule plot_density:
    input:
        densities=cells("densities", sparse_systems()),
    output:
        html=report(
            f"{RESULTS}/figures/density.html",
            caption="../report/density.rst",
            category="Figures",
            labels={"figure": "Density by layer", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/density.svg",
            caption="../report/density.rst",
            category="Figures",
            labels={"figure": "Density by layer", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/density.png",
            caption="../report/density.rst",
            category="Figures",
            labels={"figure": "Density by layer", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_density.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_density.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_density.py"),
        length_unit=experiment.length_unit,
    script:
        "../scripts/plot_density.py"


rule plot_pareto:
    input:
        summary=f"{RESULTS}/summary.parquet",
    output:
        html=report(
            f"{RESULTS}/figures/pareto.html",
            caption="../report/pareto.rst",
            category="Figures",
            labels={"figure": "Accuracy by measured density", "format": "interactive"},
        ),
        svg=report(
            f"{RESULTS}/figures/pareto.svg",
            caption="../report/pareto.rst",
            category="Figures",
            labels={"figure": "Accuracy by measured density", "format": "SVG"},
        ),
        png=report(
            f"{RESULTS}/figures/pareto.png",
            caption="../report/pareto.rst",
            category="Figures",
            labels={"figure": "Accuracy by measured density", "format": "PNG"},
        ),
    log:
        f"{RESULTS}/logs/plot_pareto.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_pareto.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("plot_pareto.py"),
        length_unit=experiment.length_unit,
        metrics={name: task.metric for name, task in experiment.tasks.items()},
        dense=dense_system(),
        families={
            name: experiment.systems[name].family or name for name in sparse_systems()
        },
    script:
        "../scripts/plot_pareto.py"
