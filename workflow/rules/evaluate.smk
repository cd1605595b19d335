rule evaluate_system:
    input:
        model=lambda w: model_files(experiment.systems[w.system].model),
        gates=lambda w: gates_files(experiment.systems[w.system]),
        samples=lambda w: samples_of(w.system, w.task, w.length),
        before=lambda w: rungs_before("predictions", w, 1),
        scores_before=lambda w: rungs_before("scores", w, 2),
    output:
        predictions=f"{RESULTS}/predictions/{{system}}/{{task}}/{{length}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}/{{task}}/{{length}}.parquet",
        densities=f"{RESULTS}/densities/{{system}}/{{task}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/evaluate_system/{{system}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_system/{{system}}/{{task}}/{{length}}.tsv"
    wildcard_constraints:
        system="|".join(map(re.escape, whole_systems())) or "none",
    conda:
        "../../envs/torch.yaml"
    threads: lambda w: opening_of(experiment.systems[w.system].model).devices
    resources:
        mem_mb=lambda w, attempt: JOB_RESOURCES.mem_mb(4000, "evaluate", w.system, w.length)
        * attempt,
        runtime=lambda w: JOB_RESOURCES.minutes(120, "evaluate", w.system, w.length),
        gpu=lambda w: JOB_RESOURCES.gpus("evaluate", w.system, w.length),
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
        early_stopping=early_stopping_of,
        opening=lambda w: dump_opening(experiment.systems[w.system].model),
        allow_extrapolation=lambda w: allows_extrapolation(w.system),
        thinking_tokens=lambda w: (
            chat_of(experiment.root_model(experiment.systems[w.system].model)) or {}
        ).get("thinking_tokens", 0),
        shards=lambda w: opening_of(experiment.systems[w.system].model).dp,
    script:
        "../scripts/evaluate_system.py"


# A share of a cell's samples, for models of dp jobs.
use rule evaluate_system as evaluate_shard with:
    output:
        predictions=f"{RESULTS}/shards/{{system}}/{{task}}/{{length}}/{{shard}}/predictions.parquet",
        measurements=f"{RESULTS}/shards/{{system}}/{{task}}/{{length}}/{{shard}}/measurements.parquet",
        densities=f"{RESULTS}/shards/{{system}}/{{task}}/{{length}}/{{shard}}/densities.parquet",
    log:
        f"{RESULTS}/logs/evaluate_shard/{{system}}/{{task}}/{{length}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_shard/{{system}}/{{task}}/{{length}}/{{shard}}.tsv"
    wildcard_constraints:
        system="|".join(map(re.escape, sharded_systems())) or "none",


rule join_shards:
    input:
        predictions=lambda w: shards_of(w, "predictions"),
        measurements=lambda w: shards_of(w, "measurements"),
        densities=lambda w: shards_of(w, "densities"),
    output:
        predictions=f"{RESULTS}/predictions/{{system}}/{{task}}/{{length}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}/{{task}}/{{length}}.parquet",
        densities=f"{RESULTS}/densities/{{system}}/{{task}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/join_shards/{{system}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/join_shards/{{system}}/{{task}}/{{length}}.tsv"
    wildcard_constraints:
        system="|".join(map(re.escape, sharded_systems())) or "none",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("join_shards.py"),
    script:
        "../scripts/join_shards.py"


# Here, not on a cluster's nodes: they may have no network, and nothing is computed. Before long
# work, because a wrong key or name shows here.
rule evaluate_api:
    input:
        samples=lambda w: samples_of(w.system, w.task, w.length),
        before=lambda w: rungs_before("predictions", w, 1),
        scores_before=lambda w: rungs_before("scores", w, 2),
    output:
        predictions=f"{RESULTS}/predictions/{{system}}/{{task}}/{{length}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}/{{task}}/{{length}}.parquet",
    log:
        f"{RESULTS}/logs/evaluate_api/{{system}}/{{task}}/{{length}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_api/{{system}}/{{task}}/{{length}}.tsv"
    wildcard_constraints:
        system="|".join(map(re.escape, api_systems())) or "none",
    priority: 90
    localrule: True
    conda:
        "../../envs/api.yaml"
    threads: 1
    resources:
        api=1,
    params:
        code=code_version("evaluate_api.py"),
        early_stopping=early_stopping_of,
        api=lambda w: dump(experiment.models[experiment.systems[w.system].model]),
        lock=lambda w: f"{RESULTS}/.{experiment.systems[w.system].model}.lock",
    script:
        "../scripts/evaluate_api.py"
