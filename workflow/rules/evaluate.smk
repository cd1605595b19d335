rule evaluate_system:
    input:
        model=lambda w: model_files(experiment.systems[w.system].model),
        gates=lambda w: gates_files(experiment.systems[w.system]),
        samples=lambda w: samples_of(w.system, w.task, w.length),
    output:
        predictions=f"{RESULTS}/predictions/{{system}}/{{task}}/{{length}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}/{{task}}/{{length}}.parquet",
        densities=f"{RESULTS}/densities/{{system}}/{{task}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/evaluate_system/{{system}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_system/{{system}}/{{task}}/{{length}}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=120,
    params:
        code=lambda w: code_version("evaluate_system.py", *system_modules(w.system)),
        modules=lambda w: system_modules(w.system),
        model=lambda w: model_path(experiment.systems[w.system].model),
        dtype=lambda w: experiment.models[experiment.systems[w.system].model].dtype,
        revision=lambda w: getattr(
            experiment.models[experiment.systems[w.system].model], "revision", None
        ),
        attention=lambda w: attention_of(experiment.systems[w.system]),
        allow_pickle=lambda w: allows_pickle(experiment.systems[w.system].model),
        thinking_tokens=lambda w: (
            chat_of(experiment.root_model(experiment.systems[w.system].model)) or {}
        ).get("thinking_tokens", 0),
    script:
        "../scripts/evaluate_system.py"
