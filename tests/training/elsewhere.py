"""Processes of their own that can be killed; torch is imported once for all of them."""

import multiprocessing

# Forked from a process that has done nothing yet: polars and torch have threads that forks lose.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["needlework.training.distill", "needlework.training.pretrain"])

Process = _context.Process
Pool = _context.Pool
