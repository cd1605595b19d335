rule export_ruler:
    input:
        samples=samples_of_cell,
        predictions=f"{RESULTS}/predictions/{{system}}.parquet",
    output:
        data=f"{RESULTS}/export/ruler/{{system}}/{{length}}/data/{{task}}/validation.jsonl",
        answers=f"{RESULTS}/export/ruler/{{system}}/{{length}}/pred/{{task}}.jsonl",
    log:
        f"{RESULTS}/logs/export_ruler/{{system}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_ruler/{{system}}/{{task}}/{{length}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        code=code_version("export_ruler.py"),
        thought_format=thought_format,
    script:
        "../scripts/export_ruler.py"


rule export_kvpress:
    input:
        samples=f"{RESULTS}/samples/{{tokenizer}}/{{task}}/{{length}}.parquet",
    output:
        table=f"{RESULTS}/export/kvpress/{{tokenizer}}/{{length}}/test-{{task}}.parquet",
    log:
        f"{RESULTS}/logs/export_kvpress/{{tokenizer}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_kvpress/{{tokenizer}}/{{task}}/{{length}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        code=code_version("export_kvpress.py"),
    script:
        "../scripts/export_kvpress.py"


rule export_dataset:
    input:
        rows=f"{RESULTS}/finetune_data/{{tokenizer}}/{{data}}.parquet",
    output:
        rows=f"{RESULTS}/export/datasets/{{tokenizer}}/{{data}}/data-00000-of-00001.arrow",
        info=f"{RESULTS}/export/datasets/{{tokenizer}}/{{data}}/dataset_info.json",
        state=f"{RESULTS}/export/datasets/{{tokenizer}}/{{data}}/state.json",
    log:
        f"{RESULTS}/logs/export_dataset/{{tokenizer}}/{{data}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_dataset/{{tokenizer}}/{{data}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        code=code_version("export_dataset.py"),
    script:
        "../scripts/export_dataset.py"


# Optional: samples, answers and training rows in the formats of other projects.
rule export:
    input:
        expand(
            f"{RESULTS}/export/ruler/{{system}}/{{length}}/pred/{{task}}.jsonl",
            system=experiment.systems,
            length=experiment.lengths,
            task=experiment.tasks,
        ),
        expand(
            f"{RESULTS}/export/kvpress/{{tokenizer}}/{{length}}/test-{{task}}.parquet",
            tokenizer=dict.fromkeys(
                experiment.root_model(system.model)
                for system in experiment.systems.values()
            ),
            length=experiment.lengths,
            task=experiment.tasks,
        ),
        [f"{RESULTS}/export/datasets/{rows}/state.json" for rows in training_rows()],
    localrule: True
