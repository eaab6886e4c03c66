"""tools/intervene_attention.py: the accuracy of a network whose attention weights are replaced."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_grey_video
from runs import config_of

from nlvideo.attention.interventions import (
    INTERVENTIONS,
    MEAN_OVER_VIDEOS,
    REMOVED,
    SHUFFLED,
    TRAINED,
    UNIFORM,
    MeanMap,
    change_of,
    collected_maps,
    replaced_maps,
)
from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.models.resnet import context_names
from nlvideo.weights.checkpoint_file import save_checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "intervene_attention.py"
PLACES = "block.places={r50: [res3.1, res4.1]}"

spec = importlib.util.spec_from_file_location("intervene_attention", TOOL)
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six grey videos, a file that is not a video, and a list of them."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_grey_video(folder / f"{i}.mp4", 8, 64, 64)
    (folder / "broken.mp4").write_text("no video")
    (folder / "list.csv").write_text("".join(f"{i}.mp4 {i % 3}\n" for i in range(6)) + "broken.mp4 0\n")
    return folder


def checkpoint_of(folder: Path, name: str, *overrides: str, seed: int = 1) -> str:
    config = config_of(
        folder, folder, "data.val=list.csv", "model.stem=all_frames", "data.num_frames=4", "data.frame_stride=1",
        "data.crop_size=64", "data.scale_range=[64,64]", "data.test={short_side: 64, crop_size: 64}", *overrides,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = build_model(config.model, config.block, config.data, 3)
    with torch.no_grad():
        for block in map(network.get_submodule, context_names(network)):
            torch.nn.init.normal_(block.last_weight)
    content = {"model": network.state_dict(), "step": 0, "config": to_container(config), "classes": ["x", "y", "z"]}
    save_checkpoint(folder / name, content)
    return str(folder / name)


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["intervene_attention.py", *arguments])
    tool.main()


def test_every_intervention_of_all_blocks_and_of_one_is_a_row(folder, monkeypatch, capsys):
    paths = [checkpoint_of(folder, f"{i}.pt", "block=nl1", PLACES, f"seed={i}", seed=i) for i in (1, 2)]
    run(monkeypatch, *paths, "--list", "list.csv", "--block", "res3.1", "--csv", str(folder / "out.csv"))
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = list(INTERVENTIONS)
    assert [(row["map"], row["blocks"]) for row in rows] == [
        (TRAINED, "all"), *((kind, "all") for kind in kinds[1:]), *((kind, "res3.1") for kind in kinds[1:])
    ]  # fmt: skip
    value = float(rows[0]["value"])
    assert 0 <= value <= 6 / 7  # the file that cannot be decoded is wrong
    for row in rows[1:]:
        assert float(row["drop"]) == pytest.approx(value - float(row["value"]))
    shown = capsys.readouterr().out
    assert "mean of 2 checkpoints" in shown and "mean over videos" in shown


def test_scores_are_those_of_the_network_and_of_one_without_its_blocks(folder):
    path = checkpoint_of(folder, "scores.pt", "block=gc5", PLACES)
    trained = tool.read_trained(path)
    table, data = tool.read_list(trained, tool.argparse.Namespace(list=None, root=None))
    scores = tool.network_scores(trained, data, table, {"all": ("res3.1", "res4.1")})
    network = trained.build_network().eval()
    for name in context_names(network):
        torch.nn.init.zeros_(network.get_submodule(name).expand.weight)
        torch.nn.init.zeros_(network.get_submodule(name).expand.bias)
    (batch,) = tool.batches(data, table, "")
    clips = tool.Normalizer(tool.Colours(data.mean, data.std), torch.device("cpu"), torch.float32)(batch.clips)
    with torch.no_grad():
        expected = network(clips).numpy()
    np.testing.assert_allclose(scores[REMOVED, "all"][:6], expected, atol=1e-5)
    assert np.abs(scores[TRAINED, "all"][:6] - expected).max() > 1e-3
    assert np.isnan(scores[SHUFFLED, "all"][6]).all()
    means = {place: MeanMap() for place in network.places}  # of the network as it is, whatever is replaced
    network = trained.build_network().eval()
    with torch.no_grad(), collected_maps(network, means):
        network(clips)
    changes = {place: change_of(MEAN_OVER_VIDEOS, mean, torch.Generator()) for place, mean in means.items()}
    with torch.no_grad(), replaced_maps(network, changes):
        expected = network(clips).numpy()
    np.testing.assert_allclose(scores[MEAN_OVER_VIDEOS, "all"][:6], expected, atol=1e-5)


def test_drops_are_paired_by_video_and_holms_p_counts_rows_that_can_change_something():
    targets = np.arange(40) % 2
    right = np.eye(2, dtype=np.float32)[targets]
    wrong = right[:, ::-1]
    some = np.where(np.arange(40)[:, None] < 10, wrong, right)
    rows = tool.summarize([{(TRAINED, "all"): right, (UNIFORM, "all"): some, (SHUFFLED, "all"): right}], targets)
    assert rows[0] == {"map": TRAINED, "blocks": "all", "metric": "top1", "value": 1.0}
    assert rows[1]["value"] == 0.75 and rows[1]["drop"] == 0.25 and rows[1]["other_answer"] == 0.25
    assert 0 < rows[1]["low"] < 0.25 < rows[1]["high"] < 1 and rows[1]["p"] == 2 * 0.5**10
    # another map without another score cannot be a finding, and counts for nothing
    assert rows[2]["drop"] == 0 and np.isnan([rows[2]["low"], rows[2]["p"], rows[2]["p_holm"]]).all()
    assert rows[1]["p_holm"] == rows[1]["p"]


def test_videos_with_several_actions_have_mean_average_precision():
    targets = np.eye(4, 3, dtype=bool)
    good = np.eye(4, 3, dtype=np.float32)
    rows = tool.summarize([{(TRAINED, "all"): good, (UNIFORM, "all"): -good}] * 2, targets)
    assert rows[0]["metric"] == "map" and rows[0]["value"] == 1 and rows[1]["drop"] > 0.3


@pytest.mark.parametrize(
    "overrides, arguments, message",
    [
        (["block=none"], [], "has no context blocks"),
        (["block=nl1", PLACES], ["--block", "res2.1"], "has blocks at res3.1, res4.1"),
        (["block=nl1", "block.places={r50: [res3.1]}"], ["OTHER"], "not one network trained with several seeds"),
        (["block=nl1", PLACES], ["--list", "none.csv"], "none.csv"),
        (["block=nl1", PLACES], ["OTHER"], "must have a seed each; they have 0, 0"),
        (["block=nl1", PLACES, "data.num_frames=8", "seed=2"], ["OTHER"], "has data.num_frames=4, .* 8"),
        (["block=nl1", PLACES], ["--csv", "."], "this is a folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(folder, monkeypatch, overrides, arguments, message):
    other = checkpoint_of(folder, "other.pt", "block=nl1", PLACES)
    path = checkpoint_of(folder, "refused.pt", *overrides)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *[other if a == "OTHER" else a for a in [path, *arguments]])
