# One job answers all samples of a system: it opens the model once, and takes answers that an
# earlier run made from the store. See docs/design.md.


rule evaluate_system:
    input:
        model=system_model_files,
        gates=system_gates,
        samples=samples_of_system,
    output:
        predictions=f"{RESULTS}/predictions/{{system}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}.parquet",
        densities=f"{RESULTS}/densities/{{system}}.parquet",
    log:
        f"{RESULTS}/logs/evaluate_system/{{system}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_system/{{system}}.tsv"
    wildcard_constraints:
        system=one_of(unsharded_systems()),
    conda:
        "../../envs/torch.yaml"
    threads: system_devices
    resources:
        **planned("evaluate", "{system}", mem_mb=4000, runtime=120),
    params:
        **code_of("evaluate_system.py", evaluation_modules),
        attention_modules=system_modules,
        store=ANSWER_STORE,
        experiment=experiment.experiment,
        model=system_model,
        attention=system_attention,
        allow_extrapolation=allows_extrapolation,
        stop_rule=stop_rule,
        thinking_tokens=thinking_tokens,
        thought_format=thought_format,
        shards=sample_shards,
    script:
        "../scripts/evaluate_system.py"


# A shard of a system's samples, for models with dp > 1.
use rule evaluate_system as evaluate_shard with:
    output:
        predictions=f"{RESULTS}/shards/{{system}}/{{shard}}/predictions.parquet",
        measurements=f"{RESULTS}/shards/{{system}}/{{shard}}/measurements.parquet",
        densities=f"{RESULTS}/shards/{{system}}/{{shard}}/densities.parquet",
    log:
        f"{RESULTS}/logs/evaluate_shard/{{system}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_shard/{{system}}/{{shard}}.tsv"
    wildcard_constraints:
        system=one_of(sharded_systems()),


rule join_shards:
    input:
        predictions=shards_of("predictions"),
        measurements=shards_of("measurements"),
        densities=shards_of("densities"),
    output:
        predictions=f"{RESULTS}/predictions/{{system}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}.parquet",
        densities=f"{RESULTS}/densities/{{system}}.parquet",
    log:
        f"{RESULTS}/logs/join_shards/{{system}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/join_shards/{{system}}.tsv"
    wildcard_constraints:
        system=one_of(sharded_systems()),
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 1500 * attempt,
        runtime=10,
    params:
        code=code_version("join_shards.py"),
        cells=CELLS,
    script:
        "../scripts/join_shards.py"


# Runs locally, as a cluster's nodes may have no network. Early, as a wrong key or name fails here.
rule evaluate_api:
    input:
        samples=samples_of_system,
    output:
        predictions=f"{RESULTS}/predictions/{{system}}.parquet",
        measurements=f"{RESULTS}/measurements/{{system}}.parquet",
    log:
        f"{RESULTS}/logs/evaluate_api/{{system}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_api/{{system}}.tsv"
    wildcard_constraints:
        system=one_of(api_systems()),
    priority: 90
    localrule: True
    conda:
        "../../envs/api.yaml"
    threads: 1
    resources:
        api=1,
    params:
        **code_of("evaluate_api.py", scorer_modules),
        stop_rule=stop_rule,
        api=api_of,
        lock=api_lock,
    script:
        "../scripts/evaluate_api.py"
