rule split_haystack:
    input:
        tokenizer=lambda w: tokenizer_files(w.tokenizer),
        text=lambda w: haystack_files(w.haystack),
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
        tokenizer=lambda w: model_path(w.tokenizer),
        revision=lambda w: getattr(experiment.models[w.tokenizer], "revision", None),
        haystack=lambda w: dump(experiment.haystacks[w.haystack]),
        length=lambda w: int(w.length),
    script:
        "../scripts/split_haystack.py"


# Before any long work, because what is wrong with lengths shows here.
rule generate_samples:
    input:
        tokenizer=lambda w: tokenizer_files(w.tokenizer),
        haystack=lambda w: haystack_of(w.tokenizer, w.task, w.length),
        files=lambda w: [
            file.replace("{length}", w.length)
            for file in experiment.tasks[w.task].files
        ],
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
        code=lambda w: code_version("generate_samples.py", *task_modules(w.task)),
        modules=lambda w: task_modules(w.task),
        tokenizer=lambda w: model_path(w.tokenizer),
        revision=lambda w: getattr(experiment.models[w.tokenizer], "revision", None),
        chat=lambda w: chat_of(w.tokenizer),
        task=lambda w: dump(experiment.tasks[w.task]),
        answer_type=lambda w: experiment.tasks[w.task].answer_type,
        samples=experiment.samples,
        depths=experiment.depths,
        length_unit=experiment.length_unit,
        seed=experiment.seed,
    script:
        "../scripts/generate_samples.py"


rule generate_finetune_data:
    input:
        tokenizer=lambda w: tokenizer_files(
            w.tokenizer, with_end=experiment.finetune_data[w.data].type == "text"
        ),
        text=lambda w: data_files(w.data),
        haystacks=lambda w: [
            file
            for length in experiment.finetune_data[w.data].lengths
            for file in haystack_of(w.tokenizer, task_of(w.data), length)
        ],
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
        code=lambda w: code_version("generate_finetune_data.py", *data_modules(w.data)),
        modules=lambda w: data_modules(w.data),
        tokenizer=lambda w: model_path(w.tokenizer),
        revision=lambda w: getattr(experiment.models[w.tokenizer], "revision", None),
        data=lambda w: dump(experiment.finetune_data[w.data]),
        task=lambda w: dump(experiment.tasks.get(task_of(w.data))),
        depths=lambda w: None if task_of(w.data) is None else experiment.depths,
        seed=experiment.seed,
    script:
        "../scripts/generate_finetune_data.py"


# Before training, which would be in vain.
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
        cells=[(t, length) for t in experiment.tasks for length in experiment.lengths],
    script:
        "../scripts/check_training_rows.py"
