"""Passive waiting between parallel regions. Imported by each program before torch.

OpenMP's threads spin while they wait for each other. Beside other work on the same cores they burn the time that the
thread they wait for needs: `tools/benchmark_load.py` measures how much. With passive waiting they sleep.

The variable is read once, when torch loads its OpenMP runtime: setting it later does nothing. From Python, set
OMP_WAIT_POLICY=passive before `import torch`. A value that the user has set is left alone.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
