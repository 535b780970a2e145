"""Processes forked from one that has computed: gunicorn's `preload`, Celery, PySpark, `datasets` with `num_proc`."""

import os
from functools import cache

import torch


@cache
def compute_after_fork() -> None:
    """Makes torch compute with one thread in processes that are forked from now on. The threads of GNU OpenMP do not
    come along, and what is computed with several waits for them for ever (pytorch issue 17199); DataLoader's workers
    do the same. Answers are equal for any number of threads.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
