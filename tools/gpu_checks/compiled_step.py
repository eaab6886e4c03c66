"""Prints the milliseconds of a compiled training step, and the seconds that compiling took, as JSON.

A program of its own, because compiling cannot be interrupted: python -m gpu_checks.compiled_step CLIPS KEY=VALUE...
"""

import dataclasses
import json
import sys
import time

import torch

from gpu_checks.step_measuring import make_learner, milliseconds_a_step, one_step, pinned_batch, step_config

if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = dataclasses.replace(step_config(int(sys.argv[1]), *sys.argv[2:]), compile=True)
    learner = make_learner(config, device, torch.bfloat16)
    step = one_step(learner, pinned_batch(learner))
    started = time.perf_counter()
    milliseconds_a_step(step, device, 1, warm_up=0)
    seconds = time.perf_counter() - started
    print(json.dumps({"ms": milliseconds_a_step(step, device, 8), "seconds": seconds}))
