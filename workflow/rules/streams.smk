rule tokenize_stream:
    input:
        tokenizer=files_for_prompts,
        text=stream_files,
    output:
        tokens=f"{RESULTS}/tokens/{{tokenizer}}/{{stream}}/{{shard}}.npy",
        starts=f"{RESULTS}/tokens/{{tokenizer}}/{{stream}}/{{shard}}.starts.npy",
        sizes=f"{RESULTS}/tokens/{{tokenizer}}/{{stream}}/{{shard}}.sizes.npy",
    log:
        f"{RESULTS}/logs/tokenize_stream/{{tokenizer}}/{{stream}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tokenize_stream/{{tokenizer}}/{{stream}}/{{shard}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=120,
    params:
        code=code_version("tokenize_stream.py"),
        tokenizer=tokenizer_path,
        revision=tokenizer_revision,
        stream=stream_text,
        seed=experiment.seed,
    script:
        "../scripts/tokenize_stream.py"


rule stream_perplexity:
    input:
        model=system_model_files,
        gates=system_gates,
        tokens=stream_tokens(".npy"),
        starts=stream_tokens(".starts.npy"),
        sizes=stream_tokens(".sizes.npy"),
    output:
        chunks=f"{RESULTS}/streams/{{system}}/{{stream}}/{{shard}}.parquet",
        positions=f"{RESULTS}/positions/{{system}}/{{stream}}/{{shard}}.parquet",
        measurements=f"{RESULTS}/measurements/streams/{{system}}/{{stream}}/{{shard}}.parquet",
    log:
        f"{RESULTS}/logs/stream_perplexity/{{system}}/{{stream}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/stream_perplexity/{{system}}/{{stream}}/{{shard}}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        **planned("streams", "{stream}", "{system}", mem_mb=4000, runtime=24 * 60),
    params:
        **code_of("stream_perplexity.py", system_modules),
        model=system_model,
        attention=system_attention,
        settings=stream_settings,
    script:
        "../scripts/stream_perplexity.py"


rule summarize_streams:
    input:
        chunks=stream_tables("streams"),
        positions=stream_tables("positions"),
    output:
        positions=f"{RESULTS}/stream_positions.parquet",
        csv=report(
            f"{RESULTS}/streams.csv",
            caption="../report/streams.rst",
            category="Tables",
            labels={"table": "Streams: perplexity, mode, state"},
        ),
    log:
        f"{RESULTS}/logs/summarize_streams.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_streams.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=10,
    params:
        code=code_version("summarize_streams.py"),
    script:
        "../scripts/summarize_streams.py"
