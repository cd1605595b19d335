rule split_haystack:
    input:
        tokenizer=files_for_prompts,
        text=haystack_files,
    output:
        sentences=f"{RESULTS}/haystacks/{{tokenizer}}/{{haystack}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/split_haystack/{{tokenizer}}/{{haystack}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/split_haystack/{{tokenizer}}/{{haystack}}/{{length}}.tsv"
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: (2000 + int(w.length) // 5000) * attempt,
        runtime=60,
    params:
        code=code_version("split_haystack.py"),
        tokenizer=tokenizer_path,
        revision=tokenizer_revision,
        haystack=haystack_of,
        length=lambda w: int(w.length),
    script:
        "../scripts/split_haystack.py"


# High priority, because errors in lengths appear here, before any long job.
rule generate_samples:
    input:
        tokenizer=files_for_prompts,
        haystack=haystack_of_samples,
        files=task_files,
    output:
        samples=f"{RESULTS}/samples/{{tokenizer}}/{{task}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/generate_samples/{{tokenizer}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_samples/{{tokenizer}}/{{task}}/{{length}}.tsv"
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: (1500 + int(w.length) // 5000) * attempt,
        runtime=60,
    params:
        **code_of("generate_samples.py", task_modules),
        tokenizer=tokenizer_path,
        revision=tokenizer_revision,
        chat=chat_of,
        takes_messages=takes_messages,
        task=task_of,
        answer_type=answer_type,
        samples=experiment.samples,
        depths=experiment.depths,
        length_unit=experiment.length_unit,
        seed=experiment.seed,
    script:
        "../scripts/generate_samples.py"


rule generate_finetune_data:
    input:
        tokenizer=files_for_prompts,
        text=finetune_data_files,
        haystacks=finetune_data_haystacks,
    output:
        rows=f"{RESULTS}/finetune_data/{{tokenizer}}/{{data}}.parquet",
    log:
        f"{RESULTS}/logs/generate_finetune_data/{{tokenizer}}/{{data}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_finetune_data/{{tokenizer}}/{{data}}.tsv"
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        **code_of("generate_finetune_data.py", finetune_data_modules),
        tokenizer=tokenizer_path,
        revision=tokenizer_revision,
        data=finetune_data_of,
        task=task_of_finetune_data,
        depths=depths_of_finetune_data,
        seed=experiment.seed,
    script:
        "../scripts/generate_finetune_data.py"


# High priority, to stop before training on rows that overlap with the evaluation.
rule check_training_rows:
    input:
        rows=f"{RESULTS}/finetune_data/{{tokenizer}}/{{data}}.parquet",
        samples=expand(
            f"{RESULTS}/samples/{{{{tokenizer}}}}/{{task}}/{{length}}.parquet",
            task=experiment.tasks,
            length=experiment.lengths,
        ),
    output:
        table=f"{RESULTS}/training_rows/{{tokenizer}}/{{data}}.csv",
    log:
        f"{RESULTS}/logs/check_training_rows/{{tokenizer}}/{{data}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/check_training_rows/{{tokenizer}}/{{data}}.tsv"
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=30,
    params:
        code=code_version("check_training_rows.py"),
        cells=CELLS,
    script:
        "../scripts/check_training_rows.py"
