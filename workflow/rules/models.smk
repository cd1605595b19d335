# Apart from its model: a text that the model is validated on needs it first.
rule make_tokenizer:
    output:
        tokenizer=f"{RESULTS}/models/{{model}}/tokenizer.json",
        tokenizer_config=f"{RESULTS}/models/{{model}}/tokenizer_config.json",
    log:
        f"{RESULTS}/logs/make_tokenizer/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_tokenizer/{{model}}.tsv"
    wildcard_constraints:
        model="|".join(map(re.escape, pretrained_models())) or "none",
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("make_tokenizer.py"),
        max_positions=lambda w: experiment.models[w.model].pretrain.max_positions,
    script:
        "../scripts/make_tokenizer.py"


rule pretrain_model:
    input:
        held_out=lambda w: held_out_files(w.model),
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
        model="|".join(map(re.escape, pretrained_models())) or "none",
    conda:
        "../../envs/torch.yaml"
    threads: lambda w: experiment.models[w.model].pretrain.processes
    resources:
        mem_mb=lambda w, attempt, threads: 6000 * threads * attempt,
        runtime=120,
    params:
        code=lambda w: code_version("pretrain_model.py", *training_modules(w.model)),
        modules=lambda w: training_modules(w.model),
        validation=lambda w: validation_of(w.model),
        pretrain=lambda w: dump(experiment.models[w.model].pretrain),
        checkpoints=lambda w: f"{RESULTS}/checkpoints/{w.model}",
        seed=experiment.seed,
    script:
        "../scripts/pretrain_model.py"


rule finetune_model:
    input:
        model=lambda w: model_files(experiment.models[w.model].base),
        rows=lambda w: rows_of(w.model, *experiment.models[w.model].finetune.data_weights),
        held_out=lambda w: held_out_files(w.model),
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
        model="|".join(map(re.escape, finetuned_models())) or "none",
    priority: 50
    conda:
        "../../envs/torch.yaml"
    threads: lambda w: experiment.models[w.model].finetune.processes
    resources:
        mem_mb=lambda w, attempt, threads: JOB_RESOURCES.mem_mb(
            6000 * threads, "finetune", w.model
        )
        * attempt,
        runtime=lambda w: JOB_RESOURCES.minutes(120, "finetune", w.model),
        gpu=lambda w: JOB_RESOURCES.gpus("finetune", w.model),
    params:
        code=lambda w: code_version("finetune_model.py", *training_modules(w.model)),
        modules=lambda w: training_modules(w.model),
        validation=lambda w: validation_of(w.model),
        base=lambda w: model_path(experiment.models[w.model].base),
        revision=lambda w: getattr(
            experiment.models[experiment.models[w.model].base], "revision", None
        ),
        allow_pickle=lambda w: allows_pickle(experiment.models[w.model].base),
        dtype=lambda w: experiment.models[w.model].dtype,
        attention=lambda w: dump(experiment.models[w.model].attention),
        finetune=lambda w: dump(experiment.models[w.model].finetune),
        checkpoints=lambda w: f"{RESULTS}/checkpoints/{w.model}",
        seed=lambda w: seed_of(experiment.models[w.model].finetune),
    script:
        "../scripts/finetune_model.py"


rule distill_gates:
    input:
        model=lambda w: model_files(experiment.gates[w.gates].model),
        rows=lambda w: rows_of(
            experiment.gates[w.gates].model, *experiment.gates[w.gates].distill.data
        ),
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
    threads: lambda w: experiment.gates[w.gates].distill.processes
    resources:
        mem_mb=lambda w, attempt, threads: 6000 * threads * attempt,
        runtime=120,
    params:
        code=lambda w: code_version(
            "distill_gates.py", *model_modules(experiment.gates[w.gates].model)
        ),
        modules=lambda w: model_modules(experiment.gates[w.gates].model),
        model=lambda w: model_path(experiment.gates[w.gates].model),
        dtype=lambda w: experiment.models[experiment.gates[w.gates].model].dtype,
        revision=lambda w: getattr(
            experiment.models[experiment.gates[w.gates].model], "revision", None
        ),
        allow_pickle=lambda w: allows_pickle(experiment.gates[w.gates].model),
        gates=lambda w: dump(experiment.gates[w.gates]),
        checkpoints=lambda w: f"{RESULTS}/checkpoints/_gates/{w.gates}",
        seed=experiment.seed,
    script:
        "../scripts/distill_gates.py"


rule package_model:
    input:
        model=lambda w: model_files(w.model),
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
        model="|".join(map(re.escape, pretrained_models())) or "none",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("package_model.py"),
        pretrain=lambda w: dump(experiment.models[w.model].pretrain),
        systems=lambda w: [
            name
            for name, system in experiment.systems.items()
            if system.model == w.model and system.attention is None
        ],
        experiment=experiment.experiment,
        seed=experiment.seed,
    script:
        "../scripts/package_model.py"
