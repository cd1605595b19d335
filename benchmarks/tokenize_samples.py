"""Tokenize each generated prompt once. Arguments: task, tokens; 0 tokens measures start-up only."""

import sys

import polars as pl

from needlework.tasks.prompts.tokenizer import open_tokenizer

task, length = sys.argv[1], int(sys.argv[2])
tokenizer = open_tokenizer("tokenizer")
if length:
    for prompt in pl.read_parquet(f"own-{task}-{length}.parquet", columns=["prompt"])["prompt"]:
        tokenizer.encode(prompt)
