rule generate_samples:
    input:
        tokenizer=lambda w: [
            f for f in model_files(w.tokenizer) if f.endswith("tokenizer.json")
        ],
    output:
        samples=f"{RESULTS}/samples/{{tokenizer}}/{{task}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/generate_samples/{{tokenizer}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_samples/{{tokenizer}}/{{task}}/{{length}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        code=lambda w: code_version("generate_samples.py", *task_modules(w.task)),
        modules=lambda w: task_modules(w.task),
        tokenizer=lambda w: model_path(w.tokenizer),
        task=lambda w: dump(experiment.tasks[w.task]),
        samples=experiment.samples,
        depths=experiment.depths,
        seed=experiment.seed,
    script:
        "../scripts/generate_samples.py"


rule generate_finetune_data:
    input:
        tokenizer=lambda w: [
            f for f in model_files(w.tokenizer) if f.endswith("tokenizer.json")
        ],
    output:
        rows=f"{RESULTS}/finetune_data/{{tokenizer}}/{{data}}.parquet",
    log:
        f"{RESULTS}/logs/generate_finetune_data/{{tokenizer}}/{{data}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_finetune_data/{{tokenizer}}/{{data}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        code=lambda w: code_version("generate_finetune_data.py", *data_modules(w.data)),
        modules=lambda w: data_modules(w.data),
        tokenizer=lambda w: model_path(w.tokenizer),
        data=lambda w: dump(experiment.finetune_data[w.data]),
        seed=experiment.seed,
    script:
        "../scripts/generate_finetune_data.py"
