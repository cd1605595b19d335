# Before its model is trained, as held-out text for validation needs it.
rule make_tokenizer:
    output:
        tokenizer=f"{RESULTS}/models/{{model}}/tokenizer.json",
        tokenizer_config=f"{RESULTS}/models/{{model}}/tokenizer_config.json",
    log:
        f"{RESULTS}/logs/make_tokenizer/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_tokenizer/{{model}}.tsv"
    wildcard_constraints:
        model=one_of(models_made_by("pretrain_model")),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("make_tokenizer.py"),
        max_positions=pretrained_positions,
    script:
        "../scripts/make_tokenizer.py"


rule pretrain_model:
    input:
        held_out=held_out_files,
    output:
        config=f"{RESULTS}/models/{{model}}/config.json",
        generation_config=f"{RESULTS}/models/{{model}}/generation_config.json",
        weights=f"{RESULTS}/models/{{model}}/model.safetensors",
        metrics=f"{RESULTS}/training/{{model}}.parquet",
        measurements=f"{RESULTS}/measurements/training/{{model}}.parquet",
    log:
        f"{RESULTS}/logs/pretrain_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain_model/{{model}}.tsv"
    wildcard_constraints:
        model=one_of(models_made_by("pretrain_model")),
    conda:
        "../../envs/torch.yaml"
    threads: processes_of
    resources:
        mem_mb=lambda w, attempt, threads: 6000 * threads * attempt,
        runtime=120,
    params:
        **code_of("pretrain_model.py", training_modules),
        validation=validation_of,
        pretrain=recipe_of,
        checkpoints=f"{RESULTS}/checkpoints/{{model}}",
        seed=experiment.seed,
    script:
        "../scripts/pretrain_model.py"


rule finetune_model:
    input:
        model=base_files,
        rows=finetune_rows,
        held_out=held_out_files,
    output:
        config=f"{RESULTS}/models/{{model}}/config.json",
        generation_config=f"{RESULTS}/models/{{model}}/generation_config.json",
        weights=f"{RESULTS}/models/{{model}}/model.safetensors",
        tokenizer=f"{RESULTS}/models/{{model}}/tokenizer.json",
        tokenizer_config=f"{RESULTS}/models/{{model}}/tokenizer_config.json",
        metrics=f"{RESULTS}/training/{{model}}.parquet",
        measurements=f"{RESULTS}/measurements/training/{{model}}.parquet",
    log:
        f"{RESULTS}/logs/finetune_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune_model/{{model}}.tsv"
    wildcard_constraints:
        model=one_of(models_made_by("finetune_model")),
    priority: 50
    conda:
        "../../envs/torch.yaml"
    threads: processes_of
    resources:
        **planned("finetune", "{model}", mem_mb_per_thread=6000, runtime=120),
    params:
        **code_of("finetune_model.py", training_modules),
        model=base_model,
        attention=conversion_of,
        finetune=recipe_of,
        validation=validation_of,
        checkpoints=f"{RESULTS}/checkpoints/{{model}}",
        seed=training_seed,
    script:
        "../scripts/finetune_model.py"


rule distill_gates:
    input:
        model=teacher_files,
        rows=distill_rows,
    output:
        weights=f"{RESULTS}/gates/{{gates}}/gates.safetensors",
        description=f"{RESULTS}/gates/{{gates}}/gates.json",
        metrics=f"{RESULTS}/training/gates/{{gates}}.parquet",
        measurements=f"{RESULTS}/measurements/training/gates/{{gates}}.parquet",
    log:
        f"{RESULTS}/logs/distill_gates/{{gates}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/distill_gates/{{gates}}.tsv"
    priority: 50
    conda:
        "../../envs/torch.yaml"
    threads: distill_processes
    resources:
        mem_mb=lambda w, attempt, threads: 6000 * threads * attempt,
        runtime=120,
    params:
        **code_of("distill_gates.py", teacher_modules),
        model=teacher_model,
        gates=gates_recipe,
        checkpoints=f"{RESULTS}/checkpoints/_gates/{{gates}}",
        seed=experiment.seed,
    script:
        "../scripts/distill_gates.py"


rule package_model:
    input:
        model=files_of_model,
        summary=f"{RESULTS}/summary.parquet",
        metrics=f"{RESULTS}/training/{{model}}.parquet",
        measurements=f"{RESULTS}/measurements/training/{{model}}.parquet",
    output:
        card=f"{RESULTS}/package/{{model}}/README.md",
        config=f"{RESULTS}/package/{{model}}/config.json",
        generation_config=f"{RESULTS}/package/{{model}}/generation_config.json",
        weights=f"{RESULTS}/package/{{model}}/model.safetensors",
        tokenizer=f"{RESULTS}/package/{{model}}/tokenizer.json",
        tokenizer_config=f"{RESULTS}/package/{{model}}/tokenizer_config.json",
    log:
        f"{RESULTS}/logs/package_model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/package_model/{{model}}.tsv"
    wildcard_constraints:
        model=one_of(models_made_by("pretrain_model")),
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("package_model.py"),
        pretrain=recipe_of,
        systems=systems_of_model,
        experiment=experiment.experiment,
        seed=experiment.seed,
    script:
        "../scripts/package_model.py"
