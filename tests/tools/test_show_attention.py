"""Pictures and statistics of tools/show_attention.py, for small networks and videos with one bright square."""

import csv
import importlib.util
import math
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from runs import config_of

from nlvideo.attention.maps import Attention, block_attention
from nlvideo.attention.pictures import heat, overlay, shown_frames
from nlvideo.attention.rows import MapRow
from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import context_names
from nlvideo.weights.checkpoint_file import save_checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "show_attention.py"
SIZE, FRAMES = 64, 8
BRIGHT = (5, 40, 24)  # frame, x, y of the square's centre, which is that of a key in res3: 16 pixels, one frame
PLACES = "block.places={r50: [res3.1, res4.1]}"

spec = importlib.util.spec_from_file_location("show_attention", TOOL)
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool  # where dataclass looks for it
spec.loader.exec_module(tool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Black videos of 8 frames with a white square in frame 5, a list of them, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("square")
    frame, x, y = BRIGHT
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
            stream.options = {"crf": "1", "threads": "1"}
            for i in range(FRAMES):
                pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
                if i == frame:
                    pixels[y - 4 : y + 4, x - 4 : x + 4] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    (folder / "broken.mp4").write_text("no video")
    (folder / "list.csv").write_text("a.mp4 0\nbroken.mp4 1\nb.mp4 2\n")
    return folder


def checkpoint_of(folder: Path, name: str, *overrides: str) -> str:
    """Writes the checkpoint of a C2D without temporal pooling and returns its path.

    Its weights are random, but phi sums the channels and theta is constant: all queries of a non-local block attend to
    the largest features, and black has features of zero.
    """
    config = config_of(
        folder, folder, "model=c2d_r50", "model.stem=all_frames", f"data.num_frames={FRAMES}", "data.frame_stride=1",
        f"data.crop_size={SIZE}", "data.scale_range=[64,64]", "data.test={short_side: 64, crop_size: 64}",
        "data.mean=[0,0,0]", "data.std=[1,1,1]", *overrides,
    )  # fmt: skip
    torch.manual_seed(1)
    network = build_model(config.model, config.block, config.data, 3)
    with torch.no_grad():
        for block in map(network.get_submodule, context_names(network)):
            torch.nn.init.normal_(block.last_weight, std=0.01)
            if isinstance(block, NonLocalBlock):
                block.phi.weight.fill_(1)
                block.theta.weight.zero_()
                block.theta.bias.fill_(1 if config.block.mode == "embedded_gaussian" else -1)
    content = {"model": network.state_dict(), "step": 0, "config": to_container(config), "classes": ["x", "y", "z"]}
    save_checkpoint(folder / name, content)
    return str(folder / name)


@pytest.fixture(scope="module")
def checkpoint(folder) -> str:
    return checkpoint_of(folder, "non_local.pt", PLACES, "block.mode=embedded_gaussian")


def run(monkeypatch, capsys, *arguments: str) -> str:
    """Returns what the command prints; an error raises SystemExit."""
    monkeypatch.setattr(sys, "argv", ["show_attention.py", *map(str, arguments)])
    tool.main()
    return capsys.readouterr().out


def video_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_picture_shows_where_the_planted_network_looks(folder, checkpoint, tmp_path, monkeypatch, capsys):
    rows = []

    def spy(path, drawn, *rest):
        rows.extend(drawn)
        return written(path, drawn, *rest)

    written = tool.write_picture
    monkeypatch.setattr(tool, "write_picture", spy)
    printed = run(
        monkeypatch, capsys, checkpoint, folder / "a.mp4", "--query", "1,3,60", "--output", tmp_path / "new/a"
    )
    frame, x, y = BRIGHT
    assert f"res3.1 embedded gaussian: strongest at frame {frame}, x {x}, y {y}, weight x M" in printed
    assert "res4.1 embedded gaussian: strongest at frame 5, x 48, y 16, weight x M" in printed  # keys of 32 pixels
    assert "a.mp4: 8 frames from frame 0, stride 1\n" in printed and "Query: frame 1, x 3, y 60." in printed
    first, second = rows
    assert first.targets[0][:3] == BRIGHT and len(first.targets) == 20 and second.query == (1, 3, 60)
    weights = [abs(target.weight) for target in first.targets]
    assert weights == sorted(weights, reverse=True) and first.scale == weights[0] == first.weights.max()
    assert (tmp_path / "new/a.png").read_bytes()[:4] == b"\x89PNG"
    video = video_of(tmp_path / "new/a.mp4")
    assert len(video) == FRAMES and video.shape[1] % 2 == video.shape[2] % 2 == 0
    moving = np.abs(video[frame].astype(int) - video[0]).max(2) > 60
    assert moving.mean() > 0.01  # the square and the heat over it


def test_the_default_query_is_the_most_attended_position(folder, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = run(monkeypatch, capsys, checkpoint, folder / "a.mp4", "--block", "res3.1", "--top", "3")
    assert (
        "Query: frame 5, x 48, y 16, the position with the largest mean attention in res4.1." in printed
        and "res4.1 embedded" not in printed
    )
    assert (tmp_path / "attention_a.png").exists() and (tmp_path / "attention_a.mp4").exists()


def test_several_queries_make_rows_of_one_block(folder, checkpoint, tmp_path, monkeypatch, capsys):
    queries = ("--query", "1,3,60", "6,0,0", "--query", "5,63,63", "--block", "res3.1")
    printed = run(monkeypatch, capsys, checkpoint, folder / "a.mp4", *queries, "--output", tmp_path / "q")
    assert "res3.1 embedded_gaussian: what each query (cross) attends to." in printed
    assert printed.count("strongest at frame 5, x 40, y 24") == 3 and "query frame 6 x 0, y 0:" in printed
    deepest = run(monkeypatch, capsys, checkpoint, folder / "a.mp4", *queries[:-2], "--output", tmp_path / "q")
    assert "res4.1 embedded_gaussian: what" in deepest


def test_negative_weights_count_by_magnitude(folder, tmp_path, monkeypatch, capsys):
    path = checkpoint_of(folder, "dot.pt", PLACES, "block.mode=dot_product")
    printed = run(monkeypatch, capsys, path, folder / "a.mp4", "--query", "1,3,60", "--output", tmp_path / "d")
    assert "res3.1 dot product: strongest at frame 5, x 40, y 24, weight x M -" in printed


def test_a_block_with_one_map_takes_no_query(folder, tmp_path, monkeypatch, capsys):
    path = checkpoint_of(folder, "gc.pt", "block=gc5", "block.places={r50: [res3.1]}")
    printed = run(monkeypatch, capsys, path, folder / "a.mp4", "--output", tmp_path / "g")
    assert "global_context: one map for all queries." in printed and (tmp_path / "g.png").exists()
    with pytest.raises(SystemExit, match="error: --query 1,2,3: global_context has one map for all queries"):
        run(monkeypatch, capsys, path, folder / "a.mp4", "--query", "1,2,3")


def test_a_clip_loops_and_starts_at_the_given_frame(folder, checkpoint, tmp_path, monkeypatch, capsys):
    printed = run(monkeypatch, capsys, checkpoint, folder / "a.mp4", "--start", "3", "--output", tmp_path / "s")
    assert "from frame 3, stride 1, looping over the video" in printed
    assert "res3.1 embedded gaussian: strongest at frame 2, x 40, y 24" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--query", "8,0,0"], "--query 8,0,0: outside the clip, which has frames 0 to 7, x 0 to 63 and y 0 to 63"),
        (["--query", "1,64,0"], "outside the clip"),
        (["--query", "1,2"], "give FRAME,X,Y as three whole numbers"),
        (["--block", "res5.0"], "--block res5.0: the network has no block there. Choose from: res3.1, res4.1"),
        (["--start", "8"], "a.mp4 has frames 0 to 7"),
        (["--limit", "3"], "--limit has no effect without --statistics"),
        (["--top", "-1"], "--top -1: must be at least 0"),
        (["--statistics", "list.csv", "--fps", "3"], "--fps has no effect with --statistics"),
        (["--statistics", "list.csv", "--start", "3"], "--start has no effect with --statistics"),
    ],
)
def test_user_errors_are_one_line(folder, checkpoint, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, capsys, checkpoint, folder / "a.mp4", *arguments)
    assert str(end.value).startswith("error: ") and message in end.value.code and "\n" not in end.value.code
    assert not list(folder.glob("attention_*"))


def test_wrong_files_are_named(folder, checkpoint, tmp_path, monkeypatch, capsys):
    none = checkpoint_of(folder, "none.pt", "block=none")
    average = checkpoint_of(folder, "se.pt", "block=se_all", "block.places={r50: [res3.1]}")
    for inputs, message in (
        ([folder / "a.mp4", folder / "a.mp4"], "is not a checkpoint that can be read"),
        ([folder / "no.pt", folder / "a.mp4"], "no.pt does not exist"),
        ([checkpoint, folder / "broken.mp4"], "broken.mp4: "),
        ([checkpoint, folder / "missing.mp4"], "missing.mp4: "),
        ([checkpoint], "1 paths given"),
        ([none, folder / "a.mp4"], "no context blocks"),
        ([average, folder / "a.mp4"], "average over all positions"),
        ([checkpoint, "--statistics", "no.csv"], "no.csv does not exist"),
    ):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, capsys, *inputs, "--output", tmp_path / "x")
        assert str(end.value).startswith("error: ") and message in end.value.code
    assert not list(tmp_path.iterdir())


def test_statistics_of_two_networks_over_a_list(folder, checkpoint, tmp_path, monkeypatch, capsys):
    other = checkpoint_of(folder, "average.pt", "block=se_all", "block.places={r50: [res4.0]}")
    printed = run(
        monkeypatch,
        capsys,
        checkpoint,
        other,
        "--statistics",
        "list.csv",
        "--num-clips",
        "2",
        "--output",
        tmp_path / "s",
    )
    assert "undecodable, left out: broken.mp4: " in printed and "1 videos could not be decoded" in printed
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [(row["checkpoint"], row["block"], row["keys"]) for row in rows] == [
        (checkpoint, "res3.1", "8x4x4"), (checkpoint, "res4.1", "8x2x2"), (other, "res4.0", "8x4x4"),
    ]  # fmt: skip
    assert {row["videos"] for row in rows} == {"2"} and {row["clips"] for row in rows} == {"4"}
    planted, _, average = rows
    # all queries of the planted block have the same row, concentrated on few keys
    assert float(planted["attention"]) == pytest.approx(0, abs=1e-6) and float(planted["jsd"]) < 1e-6
    assert float(planted["input"]) > 0.1 and float(planted["own_frame"]) == pytest.approx(1 / 8)
    assert float(planted["entropy"]) < 1 and math.isnan(float(average["jsd"]))
    assert float(average["entropy"]) == pytest.approx(1) and float(average["time"]) == pytest.approx(2.625)
    assert "average_pooling" in printed and f"checkpoint 2 {other}" in printed
    first = run(monkeypatch, capsys, checkpoint, "--statistics", "list.csv", "--limit", "1", "--output", tmp_path / "s")
    assert "undecodable" not in first
    (folder / "bad.csv").write_text("broken.mp4 1\n")
    with pytest.raises(SystemExit, match="None of the 1 videos of .*bad.csv can be decoded; broken.mp4: "):
        run(monkeypatch, capsys, checkpoint, "--statistics", "bad.csv", "--output", tmp_path / "s")


# the drawing itself


def row_of(size: int, mode: str = "dot_product") -> MapRow:
    block, x = NonLocalBlock(4, mode=mode), torch.randn(1, 4, 2, size, size)
    with torch.no_grad():
        found: Attention = block_attention(block, x, block(x), "res3.0", (4, 8 * size, 8 * size))
    weights = torch.zeros(found.key_grid)
    weights[1, 0, 1] = -0.5
    return MapRow("", found, weights, 0.5, None)


def test_heat_covers_the_pixels_of_its_key():
    row = row_of(5)  # 2x2 keys of 16 pixels; the fifth row and column of 8 pixels have no key
    values = heat(row, 3)
    assert values.shape == (40, 40) and np.isnan(values[32:]).all() and np.isnan(values[:, 32:]).all()
    assert values[7:9, 23:25].mean() == pytest.approx(-1, abs=0.1) and np.nanmin(values) == -1
    assert not np.nan_to_num(heat(row, 1)).any()  # the other frame of the map
    frames = np.full((4, 40, 40, 3), 100, np.uint8)
    painted = overlay(row, frames, 3)
    red, _, blue = painted[4, 30]
    assert blue > red  # below 0
    assert np.allclose(painted[36, 36], 100 / 255)
    row = MapRow("", row.attention, -row.weights, 0.5, None)
    red, _, blue = overlay(row, frames, 3)[4, 30]
    assert red > blue


def test_shown_frames_are_spread_and_hold_the_queries():
    assert shown_frames(16) == [1, 3, 5, 7, 9, 11, 13, 15] and shown_frames(4) == [0, 1, 2, 3]
    assert shown_frames(32, [0]) == [0, 6, 10, 14, 18, 22, 26, 30]
    assert shown_frames(16, [2, 2, 4, 15]) == [2, 4, 5, 7, 9, 11, 13, 15]
    assert set(range(6)) < set(shown_frames(64, list(range(6)))) and len(shown_frames(64, list(range(20)))) == 8
