rule plan_experiment:
    input:
        configs=config_files(),
    output:
        csv=report(
            f"{RESULTS}/plan.csv",
            caption="../report/plan.rst",
            category="Experiment",
            labels={"table": "Plan: bytes, operations, seconds"},
        ),
    log:
        f"{RESULTS}/logs/plan_experiment.log",
    benchmark:
        f"{RESULTS}/benchmarks/plan_experiment.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        code=code_version("plan_experiment.py", *config_modules()),
        modules=config_modules(),
        experiment=dump(experiment),
    script:
        "../scripts/plan_experiment.py"
