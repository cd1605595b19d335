rule tokenize_stream:
    input:
        tokenizer=lambda w: tokenizer_files(w.tokenizer),
        text=lambda w: stream_files(w.stream),
    output:
        tokens=f"{RESULTS}/tokens/{{tokenizer}}/{{stream}}/{{shard}}.npy",
        starts=f"{RESULTS}/tokens/{{tokenizer}}/{{stream}}/{{shard}}.starts.npy",
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
        tokenizer=lambda w: model_path(w.tokenizer),
        revision=lambda w: getattr(experiment.models[w.tokenizer], "revision", None),
        stream=lambda w: dump_text_of(w.stream),
        seed=experiment.seed,
    script:
        "../scripts/tokenize_stream.py"


rule stream_perplexity:
    input:
        model=lambda w: model_files(streamed(w).model),
        gates=lambda w: gates_files(streamed(w)),
        tokens=lambda w: tokens_of(w, ".npy"),
        starts=lambda w: tokens_of(w, ".starts.npy"),
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
        mem_mb=lambda w, attempt: JOB_RESOURCES.mem_mb(4000, "streams", w.stream, w.system)
        * attempt,
        runtime=lambda w: JOB_RESOURCES.minutes(24 * 60, "streams", w.stream, w.system),
        gpu=lambda w: JOB_RESOURCES.gpus("streams", w.stream, w.system),
    params:
        code=lambda w: code_version("stream_perplexity.py", *modules_of(streamed(w))),
        modules=lambda w: modules_of(streamed(w)),
        model=lambda w: model_path(streamed(w).model),
        dtype=lambda w: experiment.models[streamed(w).model].dtype,
        revision=lambda w: getattr(
            experiment.models[streamed(w).model], "revision", None
        ),
        allow_pickle=lambda w: allows_pickle(streamed(w).model),
        opening=lambda w: dump_opening(streamed(w).model),
        attention=lambda w: attention_of(streamed(w)),
        reading=lambda w: reading_of(w),
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
