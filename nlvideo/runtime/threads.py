"""How long threads spin before they sleep. Imported by each program before torch.

OpenMP's threads spin while they wait for each other, a millisecond or more by default. Beside other work on the same
cores they burn the time that the thread they wait for needs. Threads that sleep at once (OMP_WAIT_POLICY=passive) are
woken late, which costs a third of the speed on a quiet machine. `tools/benchmark_load.py` measures both; a short spin
keeps most of what each gives.

The variables are read once, when torch loads its OpenMP runtime: setting them later does nothing. From Python, set
GOMP_SPINCOUNT before `import torch`. Where the user has set one of the two, nothing is changed.
"""

import os

BOUNDED_SPIN = {"GOMP_SPINCOUNT": "100000"}  # for GNU's OpenMP, which torch's Linux wheels bring

if "OMP_WAIT_POLICY" not in os.environ:
    for _name, _value in BOUNDED_SPIN.items():
        os.environ.setdefault(_name, _value)
