"""Part D, recorded passes: that training by CUDA graphs gives the weights that training without them does."""

import torch
from torch import Tensor

from gpu_checks.findings import Findings
from gpu_checks.operations import DTYPES
from gpu_checks.ranks import difference_of_updates
from gpu_checks.step_measuring import SMALL, make_learner, one_step, random_batch, step_config
from nlvideo.config.schema import TrainConfig

STEPS, CLIPS = 3, 4
FLOAT32_LIMIT, HALF_LIMIT = 1e-3, 2e-2  # convolutions are timed for each network, and may be other ones
CASES = {  # what is recorded besides convolutions and norms
    "dot product": ["block=nl5", "block.mode=dot_product"],
    "concatenation": ["block=nl5", "block.mode=concatenation"],
    "embedded gaussian, dropout": ["block=nl5", "model.dropout=0.5"],
    "gaussian, clipped": ["block=nl5", "block.mode=gaussian", "optim.max_grad_norm=1"],
    "global context, frozen norm": ["block=gc5", "model.frozen_bn=true"],
    "bfloat16": ["block=nl5"],
    "float16": ["block=nl5"],
}


def check_recorded(found: Findings) -> None:
    """Compares the updates of a few steps."""
    for name, overrides in CASES.items():
        check = f"cuda_graph=true, {name}: difference of the updates"
        with found.case(check):
            dtype = DTYPES.get(name, torch.float32)
            config = step_config(CLIPS, *SMALL, *overrides)
            recorded = step_config(CLIPS, *SMALL, *overrides, "cuda_graph=true")
            limit = FLOAT32_LIMIT if dtype == torch.float32 else HALF_LIMIT
            before, plain = trained(config, dtype, found.device)
            _, graphed = trained(recorded, dtype, found.device)
            found.at_most(check, difference_of_updates(graphed, plain, before), limit)


def trained(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Tensor], dict]:
    """Returns the network's state before and after a few steps, each with its own dropout."""
    learner = make_learner(config, device, dtype)
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    step = one_step(learner, random_batch(config, CLIPS))
    for i in range(STEPS):
        torch.manual_seed(i)
        step()
    return before, learner.network.state_dict()
