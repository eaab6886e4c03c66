"""When frames go to the device and scores come back."""

import numpy as np
import pytest
import torch
from conftest import composed
from runs import TINY

from nlvideo.build.model import build_model
from nlvideo.data.clips.batch import Colours
from nlvideo.data.clips.views import VideoViews, without_views
from nlvideo.evaluation import scoring
from nlvideo.evaluation.scoring import Scorer, score_videos
from nlvideo.models.resnet import VideoResNet
from nlvideo.runtime.errors import RunFailed
from nlvideo.runtime.torch_private import FakeTensorMode

COLOURS = Colours([0.4, 0.4, 0.4], [0.2, 0.2, 0.2])


class Recorder:
    """A scorer, a pooler, a store and a progress bar that write down what is asked of them."""

    def __init__(self, broken=None):
        self.done, self.kept, self.broken = [], {}, broken

    def upload(self, views):
        self.done.append(f"upload {views.video}")
        return views

    def view_scores(self, views):
        if views.video == self.broken:
            raise RunFailed("no memory")
        self.done.append(f"score {views.video}")
        return torch.tensor([float(views.video)])

    def video_score(self, video, scores):
        self.done.append(f"fetch {video}")
        return scores.item()

    def __setitem__(self, video, value):
        self.kept[video] = value

    def flush_if_due(self):
        pass

    def flush(self):
        self.done.append("flush")

    def update(self):
        pass


def views_of(video):
    return VideoViews(torch.empty(1), torch.empty(1), [(0, 0)], (1, 1), video, [])


def scored(recorder, views, videos_per_step=1, stopped=lambda: False):
    parts = {"videos_per_step": videos_per_step, "stopped": stopped, "bar": recorder}
    return score_videos(recorder, recorder, views, recorder, **parts)


def test_the_next_video_is_launched_before_scores_are_waited_for():
    recorder = Recorder()
    assert scored(recorder, map(views_of, range(3))) == recorder.kept == {0: 0.0, 1: 1.0, 2: 2.0}
    first = ["upload 0", "score 0"]
    assert recorder.done == [*first, *"upload 1|score 1|fetch 0|upload 2|score 2|fetch 1|fetch 2|flush".split("|")]


def test_scores_of_several_videos_are_fetched_together():
    recorder = Recorder()
    views = [views_of(0), without_views(1, "broken"), views_of(2), views_of(3)]
    assert scored(recorder, views, 2) == recorder.kept == {0: 0.0, 1: "broken", 2: 2.0, 3: 3.0}
    assert recorder.done[2:] == ["upload 2", "score 2", "upload 3", "score 3", "fetch 0", "fetch 2", "fetch 3", "flush"]


def test_what_is_scored_is_kept_however_the_evaluation_ends():
    def slow():
        yield from map(views_of, range(2))
        raise RunFailed("a slow video")

    recorder = Recorder()
    with pytest.raises(RunFailed, match="a slow video"):
        scored(recorder, slow())
    assert recorder.kept == {0: 0.0, 1: 1.0} and recorder.done[-1] == "flush"
    recorder = Recorder(broken=1)
    with pytest.raises(RunFailed, match="no memory"):
        scored(recorder, map(views_of, range(3)), 5)
    assert recorder.kept == {0: 0.0}
    recorder = Recorder()
    assert scored(recorder, map(views_of, range(3)), 5, lambda: "score 1" in recorder.done) == {0: 0.0, 1: 1.0}


def network():
    config = composed(*TINY, "data.root=x")
    return build_model(config.model, config.block, config.data, 3)


def test_a_video_is_scored_on_a_gpu_without_waiting_for_it(monkeypatch):
    """A fake tensor has no values: whatever asks for one raises, as it would wait for a real GPU."""
    copied = []

    def copy_stream(device):
        return lambda *tensors: [copied.append(tensor.dtype) or tensor.to(device) for tensor in tensors]

    monkeypatch.setattr(scoring, "CopyStream", copy_stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(VideoResNet, "to", lambda network, *_, **__: network)  # it is made there
    options = {"colours": COLOURS, "multi_label": False, "views_per_step": 4}
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            made = network()
        scorer = Scorer(made, torch.device("cuda"), torch.float32, **options)
        frames = torch.empty(7, 32, 40, 3, dtype=torch.uint8)
        views = VideoViews(frames, torch.zeros(3, 4, dtype=torch.int64), [(0, 0), (0, 8)], (32, 32), 0, [])
        scores = scorer.view_scores(scorer.upload(views))
    assert scores.shape == (3, 2, 3) and scores.device.type == "cuda"
    assert copied == [torch.uint8, torch.int64]  # the frames once, and which are whose


def test_scores_do_not_depend_on_where_views_are_cut(monkeypatch):
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(256, size=(7, 32, 40, 3), dtype=np.uint8))
    wanted = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]])
    views = VideoViews(frames, wanted, [(0, 0), (0, 8)], (32, 32), 0, [])
    scorer = Scorer(network(), torch.device("cpu"), torch.float32, colours=COLOURS, multi_label=False, views_per_step=4)
    on_cpu = scorer.view_scores(scorer.upload(views))
    monkeypatch.setattr(VideoViews, "_cut_on_cpu", VideoViews._cut_on_device)
    assert torch.equal(scorer.view_scores(scorer.upload(views)), on_cpu) and on_cpu.shape == (3, 2, 3)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("_copy", "the 0 MB of a video's frames"),
        ("normalize", "4 views of 4x32x32 at a time"),
        ("cut", "4 views of 4x32x32 at a time"),
    ],
)
def test_where_memory_runs_out_what_saves_some_is_said(monkeypatch, place, what):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    views = VideoViews(torch.zeros(7, 32, 40, 3, dtype=torch.uint8), torch.zeros(3, 4, dtype=torch.int64),
                       [(0, 0), (0, 8)], (32, 32), 0, [])  # fmt: skip
    scorer = Scorer(network(), torch.device("cpu"), torch.float32, colours=COLOURS, multi_label=False, views_per_step=4)
    if place == "cut":
        monkeypatch.setattr(VideoViews, "_cut_on_cpu", fail)
    else:
        monkeypatch.setattr(scorer, place, fail)
    with pytest.raises(RunFailed, match=f"no memory for {what}; use a smaller views_per_step=4, fewer or smaller"):
        scorer.view_scores(scorer.upload(views))
