"""Training steps against PySlowFast's own network and optimiser from the same weights (287ec00, I3D_NLN_8x8_R50)."""

import json

import pytest
import torch
from conftest import composed
from seeded_weights import PARITY, seeded_clip, seeded_state

from nlvideo.data.clips.batch import Batch
from nlvideo.runtime.distributed import World
from nlvideo.train import train_step
from nlvideo.training.clip_loss import ClipLoss
from nlvideo.training.learner import build_learner
from nlvideo.weights.trained_network import read_trained

NAME = "pyslowfast_i3d_nln_8x8_r50_training"


@pytest.mark.slow
def test_three_steps_are_pyslowfasts(tmp_path):
    """Losses before each update, and norms of all gradients together, in float64 from weights in float32."""
    peer = json.loads((PARITY / f"{NAME}.json").read_text())
    torch.save({"model_state": seeded_state(NAME)}, tmp_path / "peer.pyth")
    trained = read_trained(tmp_path / "peer.pyth")
    network = trained.build_network().double()
    network.dropout.p = float(peer["dropout"])
    momentum, decay = (peer["optimizer"][key] for key in ("momentum", "weight_decay"))
    config = composed(
        *["experiment=i3d_r50_nl5", "data.root=x", "precision=float64", f"optim.lr={peer['lr']}"],
        *[f"optim.momentum={momentum}", f"optim.weight_decay={decay}", "optim.nesterov=true"],
    )
    learner = build_learner(config, network, World(0, 0, 1, torch.device("cpu")), torch.float64, loss=ClipLoss(False))
    groups = [[group["weight_decay"], len(group["params"])] for group in learner.optimizer.param_groups]
    assert sorted(groups) == peer["weight_decay"]
    learner.normalize = torch.Tensor.double  # the clip is normalised
    targets = torch.tensor(peer["targets"])
    batch = Batch(seeded_clip(peer["input"]), targets, torch.arange(4), [], torch.arange(4))
    for loss, norm in zip(peer["losses"], peer["gradient_norms"], strict=True):
        found = train_step(learner, [batch]).read()
        assert found.loss == pytest.approx(loss, rel=1e-10)
        assert found.grad_norm == pytest.approx(norm, rel=1e-10)
