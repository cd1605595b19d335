"""Streams of the experiment: their text, and how a system reads it."""


def stream_files(name):
    """The user's files of stream `name`; none where it is generated, or a hub's."""
    path = experiment.streams[name].path
    return [] if path is None else files_below(path)


def dump_text_of(stream):
    """The keys of a stream that say what its text is, as a rule's param."""
    read = {
        "separate_documents",
        "chunk_size",
        "overlap",
        "adaptive",
        "systems",
        "shards",
    }
    found = dump(experiment.streams[stream])
    kept = {key: value for key, value in found.items() if key not in read}
    # Documents are dealt out, so all shards change with their number; generated ones do not.
    return {**kept, "shards": found["shards"] if found["path"] is not None else 1}


def streamed(w):
    """The system that reads a stream: one of the experiment's, or of the stream's own."""
    return experiment.systems.get(w.system) or experiment.streams[w.stream].read_by(
        w.system
    )


def tokens_of(w, suffix):
    """A file of the token ids that a system reads: in its model's tokenizer."""
    tokenizer = experiment.root_model(streamed(w).model)
    return f"{RESULTS}/tokens/{tokenizer}/{w.stream}/{w.shard}{suffix}"


def reading_of(w):
    """How a system reads a stream: arguments of a StreamingEvaluator."""
    stream = experiment.streams[w.stream]
    how = stream.read_by(w.system)
    return {
        "chunk_size": how.chunk_size,
        "overlap": how.overlap,
        "window_batch_size": how.window_batch_size,
        "separate_documents": stream.separate_documents,
        "adaptive": stream.adaptive,
    }


def stream_tables(stage):
    """Paths of one stage's tables of streams, in the experiment's order."""
    return [
        f"{RESULTS}/{stage}/{system}/{name}/{shard}.parquet"
        for name, stream in experiment.streams.items()
        for system in stream.systems or experiment.systems
        for shard in range(stream.shards)
    ]
