"""Streams of the experiment: their text, and how a system reads it."""


def stream_files(wildcards):
    """The user's files of {stream}; none if it is generated, or on the hub."""
    path = experiment.streams[wildcards.stream].path
    return [] if path is None else files_below(path)


def stream_text(wildcards):
    """The keys of {stream} that determine its text."""
    reading = {
        "separate_documents",
        "chunk_size",
        "overlap",
        "adaptive",
        "systems",
        "shards",
    }
    stream = dump(experiment.streams[wildcards.stream])
    text = {key: value for key, value in stream.items() if key not in reading}
    # Documents are dealt out over shards, so every shard changes with their number. Generated
    # text does not.
    return {**text, "shards": stream["shards"] if stream["path"] is not None else 1}


def stream_tokens(suffix):
    """A function of wildcards: a file of {stream} in the tokenizer of system {system}."""

    def path(wildcards):
        tokenizer = experiment.root_model(system_of(wildcards).model)
        folder = f"{RESULTS}/tokens/{tokenizer}/{wildcards.stream}"
        return f"{folder}/{wildcards.shard}{suffix}"

    return path


def stream_settings(wildcards):
    """Settings of the StreamingEvaluator by which system {system} reads {stream}."""
    stream = experiment.streams[wildcards.stream]
    reader = stream.read_by(wildcards.system)
    return {
        "chunk_size": reader.chunk_size,
        "overlap": reader.overlap,
        "window_batch_size": reader.window_batch_size,
        "separate_documents": stream.separate_documents,
        "adaptive": stream.adaptive,
        "repeat_first": stream.bos == "each_window",
    }


def stream_tables(stage):
    """Paths of one stage's tables of streams, in the experiment's order."""
    return [
        f"{RESULTS}/{stage}/{system}/{name}/{shard}.parquet"
        for name, stream in experiment.streams.items()
        for system in stream.systems or experiment.systems
        for shard in range(stream.shards)
    ]
