"""What surrounds a validation; what it returns is tested with the runs."""

import torch
from runs import config_of

from nlvideo.models.resnet import VideoResNet
from nlvideo.train import train


def test_cudnn_times_its_algorithms_in_training_but_not_in_validation(video_folder, tmp_path, monkeypatch):
    """As on a GPU; on a CPU the setting has no effect. The last batch of a validation may be smaller."""
    monkeypatch.setattr(
        "nlvideo.training.learner.time_algorithms", lambda device: setattr(torch.backends.cudnn, "benchmark", True)
    )
    seen, forward = [], VideoResNet.forward

    def noted(network, clips):
        seen.append((network.training, torch.backends.cudnn.benchmark))
        return forward(network, clips)

    monkeypatch.setattr(VideoResNet, "forward", noted)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # put back afterwards
    steps = ["optim.batch_size=4", "optim.max_steps=2", "validate_every_steps=1", "checkpoint_every_steps=2"]
    train(config_of(video_folder, tmp_path / "run", *steps))
    assert {True, False} == {training for training, _ in seen}
    assert all(timed is training for training, timed in seen)
