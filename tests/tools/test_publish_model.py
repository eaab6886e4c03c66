"""A published folder is the network that was trained, names nothing of the machine, and travels by hub or by copy."""

import getpass
import hashlib
import io
import json
import logging
import os
import pickle
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_hub import serving
from in_process import TOOLS, run_tool
from runs import assert_equal, config_of

import nlvideo
from nlvideo.config.compose import compose_train_config
from nlvideo.prediction.predictor import Predictor
from nlvideo.runtime.errors import UserError
from nlvideo.train import train
from nlvideo.weights.adoption import take_from_pretrained
from nlvideo.weights.checkpoint_file import evaluation_weights, load_checkpoint, save_checkpoint
from nlvideo.weights.hub import is_repository, local_weights
from nlvideo.weights.pretrained import load_pretrained
from nlvideo.weights.trained_network import read_trained

TOOL = "publish_model.py"
FILES = ["README.md", "classes.json", "config.json", "model.safetensors"]
NOWHERE = "http://127.0.0.1:9"  # where nothing listens
NAMES = ["opening a bottle", "1 on 1 basketball", "déjà vu"]


@pytest.fixture(scope="module")
def run(video_folder, tmp_path_factory) -> Path:
    """A finished run with averaged weights, precise statistics and class names, and its evaluation."""
    folder = tmp_path_factory.mktemp("home of jane doe") / "run"
    (folder.parent / "names.txt").write_text("\n".join(NAMES))
    named = f"data.classes={folder.parent}/names.txt"
    more = ["optim.ema_decay=0.5", "precise_bn_steps=1", "optim.max_steps=6", named]
    more += ["validate_every_steps=6", "checkpoint_every_steps=6"]
    train(config_of(video_folder, folder, *more))
    nlvideo.evaluate(folder, ["report=false", f"data.classes={folder.parent}/names.txt"])
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "network"
    with redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(TOOLS / TOOL))["publish"](run, folder, "cc-by-4.0")
    assert said.getvalue() == f"{folder}: step 6, 3 classes, 1 evaluation in its README.md\n"
    return folder


def test_it_holds_the_weights_of_an_evaluation_alone_and_no_path(run, published):
    assert sorted(file.name for file in published.iterdir()) == FILES
    assert {file.stat().st_mode & 0o444 for file in published.iterdir()} == {0o444 & ~_umask()}
    content = load_checkpoint(run / "checkpoint.pt")
    assert content["ema"] and content["precise_bn"] and "optimizer" in content
    from safetensors.torch import load_file

    assert_equal(load_file(published / "model.safetensors"), evaluation_weights(content))
    words = [str(run), str(run.parent.name), str(Path.home()), socket.gethostname(), str(Path(sys.prefix))]
    words += [getpass.getuser(), str(Path(content["config"]["data"]["root"]))]
    for file in published.iterdir():
        held = file.read_bytes()
        if file.suffix == ".safetensors":  # short words occur by chance among numbers
            held = held[: 8 + int.from_bytes(held[:8], "little")]
        found = [word for word in words if re.search(rb"(?<![\w.-])%s(?![\w.-])" % re.escape(word.encode()), held)]
        assert not found, (file.name, found)
        assert b"/root" not in held and b"/home" not in held and b"/tmp" not in held


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_card_is_one_that_the_hub_reads(run, published):
    text = (published / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "nlvideo")
    assert front["pipeline_tag"] == "video-classification" and "non_local" in front["tags"]
    (result,) = [json.loads(file.read_text()) for file in run.glob("evaluation_*/result.json")]
    low, high = (100 * end for end in result["top1_interval"])
    row = "| 5 | 2 x 3 uniform | 4 x 2 | 32 of 32, float32 | "
    row += f"top-1 | {100 * result['top1']:.2f} | {low:.2f} to {high:.2f} (Wilson) |"
    assert row in text and result["interval"] in text
    assert load_checkpoint(run / "checkpoint.pt")["list_sha256"] in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["optim"]["ema_decay"] == 0.5 and recipe["precise_bn_steps"] == 1
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install nlvideo[hub]")
    made = huggingface_hub.ModelCard(text)
    assert made.data.license == "cc-by-4.0" and made.data.library_name == "nlvideo"


def test_it_is_taken_wherever_a_checkpoint_is(run, published, video_folder, tmp_path):
    ours, theirs = nlvideo.load_model(run / "checkpoint.pt"), nlvideo.load_model(published)
    assert not theirs.training
    assert_equal(ours.state_dict(), theirs.state_dict())
    video = video_folder / "val/a video 0.mp4"
    found, expected = Predictor(published), Predictor(run)
    assert found.classes == NAMES and np.array_equal(found.scores(video), expected.scores(video))
    moved = tmp_path / "moved"
    shutil.copytree(published, moved)
    result = nlvideo.evaluate(moved, [f"data.root={video_folder}", "report=false"])
    before = json.loads(next(run.glob("evaluation_*/result.json")).read_text())
    same = ("top1", "top5", "views", "mean", "num_frames", "step", "batch_norm")
    assert {key: result[key] for key in same} == {key: before[key] for key in same}
    assert [path.name for path in moved.glob("evaluation_*")] == ["evaluation_step6_2x3_uniform"]
    overrides = [f"model.pretrained={published}", f"data.root={video_folder}", f"data.classes={run.parent}/names.txt"]
    config = take_from_pretrained(compose_train_config(overrides), {})
    assert (config.model.width, config.data.crop_size, config.block.kind) == (4, 32, "non_local")
    from nlvideo.build.model import build_model

    network = build_model(config.model, config.block, config.data, 3)
    assert "its head kept; no new blocks" in load_pretrained(network, config, NAMES).sentence
    assert_equal(network.state_dict(), evaluation_weights(load_checkpoint(run / "checkpoint.pt")))
    with pytest.raises(UserError, match="config: an nlvideo checkpoint brings its own"):
        nlvideo.load_model(published, config=["block=none"])


def test_what_cannot_be_published_is_one_line(run, published, video_folder, tmp_path, monkeypatch, capsys):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    shutil.copy(run / "checkpoint.pt", stopped)
    (tmp_path / "empty").mkdir()
    torch.save({"s1.pathway0_stem.conv.weight": torch.ones(1)}, tmp_path / "theirs.pyth")
    before = {file: file.read_bytes() for file in published.iterdir()}
    for source, target, more, message in (
        (run, published, [], "network exists already; nothing is overwritten."),
        (stopped, tmp_path / "out", [], "stopped is not finished (still running, or killed); resume it, or name"),
        (tmp_path / "empty", tmp_path / "out", [], "empty is no folder of nlvideo-train: it holds no checkpoint.pt."),
        (tmp_path / "nothing", tmp_path / "out", [], "nothing does not exist."),
        (run / "config.yaml", tmp_path / "out", [], "config.yaml is not a checkpoint that can be read"),
        (run, tmp_path / "out", ["--license", "Apache 2"], "--license Apache 2: the hub writes licences as apache-2.0"),
    ):
        done = run_tool(TOOL, source, target, *more, monkeypatch=monkeypatch, capsys=capsys)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    (stopped / "status.json").write_text('{"state": "stopped"}')
    done = run_tool(TOOL, stopped, tmp_path / "out", monkeypatch=monkeypatch, capsys=capsys)
    assert "is not finished (stopped)" in done.stderr
    assert {file: file.read_bytes() for file in published.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "stopped", "theirs.pyth"]
    done = run_tool(TOOL, stopped / "checkpoint.pt", tmp_path / "out", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 0 and "no evaluation in its README.md" in done.stdout
    assert "None: the checkpoint was not evaluated" in (tmp_path / "out/README.md").read_text()


def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    done = run_tool(TOOL, run, tmp_path / "out", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/out could not be written: No space left on device.\n"
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_unless_one_holds_it(run, tmp_path, tool, capsys):
    for name in (".out.01234567.part", ".out.89abcdef.part", ".other.01234567.part", ".out.notes.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").touch()
    (tmp_path / ".out.00000000.part").mkdir()  # killed before it wrote anything
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    words = [sys.executable, "-c", hold, tmp_path / ".out.89abcdef.part/README.md"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        tool["publish"](run, tmp_path / "out")
        holder.communicate(b"\n")
    left = [".other.01234567.part", ".out.89abcdef.part", ".out.notes.part", "out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES


def test_a_folder_that_is_being_written_is_held(run, tmp_path, tool, monkeypatch):
    """A second process that starts meanwhile leaves it alone."""
    ask = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def write(partial: Path, _: object) -> None:
        done = subprocess.run([sys.executable, "-c", ask, partial / "README.md"], capture_output=True, text=True)
        raise UserError(done.stderr)

    monkeypatch.setitem(tool["publish"].__globals__, "write_network", write)
    with pytest.raises(UserError, match="BlockingIOError"):
        tool["publish"](run, tmp_path / "out")


def test_a_link_to_nothing_is_not_overwritten(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    done = run_tool(TOOL, run, tmp_path / "out", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1 and done.stderr == f"error: {tmp_path}/out exists already; nothing is overwritten.\n"


@pytest.fixture
def tool():
    return runpy.run_path(str(TOOLS / TOOL))


def changed_run(run: Path, folder: Path, **content) -> Path:
    """Writes a checkpoint as the run's, with other content or without."""
    folder.mkdir()
    held = load_checkpoint(run / "checkpoint.pt") | content
    wanted = {key: value for key, value in held.items() if value is not None and key not in ("sha256", "format")}
    save_checkpoint(folder / "run.pt", wanted)
    return folder / "run.pt"


def test_evaluations_that_differ_look_different(run, tool):
    (result,) = [json.loads(file.read_text()) for file in run.glob("evaluation_*/result.json")]
    views = result["views"]
    for other, said in (
        ({"num_frames": 8}, "| 8 x 2 |"),
        ({"frame_stride": 1}, "| 4 x 1 |"),
        ({"clip_fps": 12.5}, "| 4 x 2 at 12.5/s |"),
        ({"views": views | {"short_side": 64}}, "| 32 of 64, float32 |"),
        ({"views": views | {"crop_size": None}}, "| all of 32, float32 |"),
        ({"views": views | {"pooling": "max"}}, "| 2 x 3 uniform, max |"),
        ({"precision": "bfloat16"}, "| 32 of 32, bfloat16 |"),
        ({"num_undecodable": 2}, "| 5, 2 undecodable |"),
    ):
        assert said in tool["_rows"](result | other)[0] and said not in tool["_rows"](result)[0]


def test_results_that_cannot_be_read_are_left_out_of_the_card(run, tmp_path, tool, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    (whole,) = moved.glob("evaluation_*")
    for name, text in (("cut", '{"top1"'), ("list", "[]"), ("lacking", None)):
        shutil.copytree(whole, moved / name)
        held = {key: value for key, value in json.loads((whole / "result.json").read_text()).items() if key != "views"}
        (moved / name / "result.json").write_text(json.dumps(held) if text is None else text)
    assert len(tool["_evaluations"](read_trained(moved))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("left out of the card: ") for line in lines)
    assert lines[1].endswith("lacking/result.json is not what nlvideo-evaluate writes: KeyError('views')")


def test_the_card_tells_the_history_that_is_known_and_no_other(run, tmp_path, tool):
    history = "\n".join(tool["_history"](read_trained(run)))
    assert "started from random weights" in history and "max_steps: 6" in history
    converted = read_trained(changed_run(run, tmp_path / "converted", origin="PySlowFast weights", list_sha256=None))
    (line,) = tool["_history"](converted)
    assert line.startswith("None by nlvideo: these are PySlowFast weights, converted. SHA-256")
    (line,) = tool["_history"](read_trained(changed_run(run, tmp_path / "bare", list_sha256=None)))
    assert line.startswith("Step 6; not recorded: no run wrote this checkpoint. SHA-256")


def test_a_start_is_named_without_its_path(tool, tmp_path, monkeypatch):
    """A run's folder has the form of a repository's name; only one that training has pinned is called so."""
    monkeypatch.chdir(tmp_path)
    commit = "0123456789" * 4
    for pretrained, said in (
        (None, "random weights"),
        ("imagenet", "torchvision's ImageNet weights (IMAGENET1K_V1), inflated"),
        (f"owner/name@{commit}", f"`owner/name@{commit}` of the Hugging Face hub"),
        ("outputs/secret_client", "other weights"),
        ("clients/secret_client", "other weights"),
        ("/home/jane_doe", "other weights"),
        (f"/home/jane_doe@{commit}", "other weights"),
        ("/home/jane_doe/I3D_8x8.pyth", "other weights, `I3D_8x8.pyth`"),
    ):
        assert tool["_start"](pretrained) == said


def test_a_class_that_is_no_text_is_one_line(run, tmp_path, monkeypatch, capsys):
    file = changed_run(run, tmp_path / "odd", classes=["a", "b\udcff", "c"])
    done = run_tool(TOOL, file, tmp_path / "out", monkeypatch=monkeypatch, capsys=capsys)
    assert done.returncode == 1 and done.stderr.startswith("error: The class 'b\\udcff' is no valid text;")
    assert not (tmp_path / "out").exists()


def test_a_damaged_or_foreign_folder_is_refused(published, tmp_path):
    def changed(name: str, content: bytes | None) -> Path:
        folder = tmp_path / f"damaged{len(list(tmp_path.iterdir()))}"
        shutil.copytree(published, folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        return folder

    config = json.loads((published / "config.json").read_text())
    weights = (published / "model.safetensors").read_bytes()
    with_code = pickle.dumps(print)
    for folder, message in (
        (changed("model.safetensors", None), "lacks model.safetensors of a published network's files"),
        (changed("model.safetensors", weights[:-9]), "model.safetensors is not a checkpoint that can be read"),
        (changed("model.safetensors", with_code), "model.safetensors is not a checkpoint that can be read"),
        (changed("model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1])), "corrupt: its content does not match"),
        (changed("classes.json", b'["a"]'), "classes.json is not a list of 3 class names"),
        (changed("config.json", b"{"), "config.json is not a json file that can be read"),
        (changed("config.json", b'{"model_type": "bert"}'), "not describe a network of nlvideo's, but a bert model"),
        (changed("config.json", json.dumps(config | {"nlvideo_format": 99}).encode()), "by a newer nlvideo .format 99"),
        (changed("config.json", json.dumps(config | {"step": 7}).encode()), "corrupt: its content does not match"),
    ):
        with pytest.raises(UserError, match=message):
            read_trained(folder)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("owner/name", True),
        ("owner/i3d-r50.v2@main", True),
        ("owner/name@refs/pr/1", True),
        ("outputs/name", False),
        ("run/config.yaml", False),
        ("a/video.mp4", False),
        ("run/checkpoint.pt", False),
        ("run/weights.safetensors", False),
        ("/run/name", False),
        ("../name", False),
        ("a/b/c", False),
        ("name", False),
    ],
)
def test_names_of_the_hub(name, is_one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_repository(name) == is_one
    (tmp_path / "owner/name").mkdir(parents=True)
    assert not is_repository("owner/name")  # what exists here wins
    assert not is_repository("owner/misspelt")  # and is not looked for elsewhere


def test_without_the_package_the_files_and_their_place_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError) as raised:
        local_weights("owner/name@v1")
    assert str(raised.value) == (
        "owner/name is no file or folder here, and was not downloaded: the package huggingface_hub is not installed "
        "(pip install 'nlvideo[hub]'). You can put config.json, classes.json, model.safetensors of "
        "https://huggingface.co/owner/name/tree/v1 into the folder owner/name, and give its name alone."
    )


@pytest.fixture
def hub_at(tmp_path, monkeypatch):
    """Has the hub's client as a new process has it, which reads the environment when it is imported."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install nlvideo[hub]")

    @contextmanager
    def hub_at(address: str, **variables: str) -> Iterator[None]:
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", **variables}
        said = io.StringIO()
        with monkeypatch.context() as patched, new_import_of("huggingface_hub"), logging_to(said):
            patched.chdir(tmp_path)
            for key, value in settings.items():
                patched.setenv(key, value)
            yield
        assert said.getvalue() == ""

    return hub_at


@contextmanager
def new_import_of(package: str) -> Iterator[None]:
    """Lets a package be imported anew, and puts back afterwards what had been imported."""

    def imported() -> dict[str, object]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}

    before = imported()
    try:
        for name in before:
            del sys.modules[name]
        yield
    finally:
        for name in imported():
            del sys.modules[name]
        sys.modules.update(before)


@contextmanager
def logging_to(stream: io.StringIO) -> Iterator[None]:
    """Sends all that is logged to a stream, as Hydra does to the standard output."""
    root, handler = logging.getLogger(), logging.StreamHandler(stream)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def answers(*names: str) -> dict[str, object]:
    """Returns what networks have, or the line that says why one cannot be had."""

    def answer(name: str) -> object:
        try:
            return [read_trained(name).step, nlvideo.load_model(name).fc.bias.sum().item()]
        except UserError as error:
            return str(error)

    return {name: answer(name) for name in names}


def test_the_hubs_own_client_brings_the_files_of_the_pinned_revision_alone(published, tmp_path, hub_at):
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    other = tmp_path / "other"
    _republished(published, other)
    later = {file.name: file.read_bytes() for file in other.iterdir()} | {"training.pkl": pickle.dumps(print)}
    repositories = {
        "owner/name": {"v1": files, "main": later},
        "owner/bert": {"main": {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"x"}},
        "owner/csv": {"main": {"a.csv": b"x"}},
        "owner/data": {"main": {"a.csv": b"x", "b.csv": b"x"}},
        "owner/half": {"main": {name: files[name] for name in FILES if name != "model.safetensors"}},
    }
    with serving(repositories, unlisted="owner/csv") as (address, asked), hub_at(address):
        names = ["owner/name@v1", "owner/name", "owner/name@v2", "owner/bert", "owner/data", "owner/half", "no/one"]
        found = answers(*names, "owner/csv")
    bias = [nlvideo.load_model(folder).fc.bias.sum().item() for folder in (published, other)]
    assert found.pop("owner/name@v1") == [6, pytest.approx(bias[0])]
    assert found.pop("owner/name") == [6, pytest.approx(bias[1])] and abs(bias[0] - bias[1]) > 1
    assert found.pop("owner/name@v2") == "owner/name on the hub has no revision v2."
    assert found.pop("owner/bert") == (
        "owner/bert on the hub: config.json does not describe a network of nlvideo's, but a bert model. It holds: "
        "config.json, pytorch_model.bin."
    )
    lacks = "is no network of nlvideo's: of config.json, classes.json, model.safetensors it lacks some. It holds:"
    assert found.pop("owner/data") == f"owner/data on the hub {lacks} a.csv, b.csv."
    assert found.pop("owner/half") == f"owner/half on the hub {lacks} README.md, classes.json, config.json."
    assert found.pop("owner/csv") == f"owner/csv on the hub {lacks} files that cannot be listed now."
    assert "the hub has no repository of this name that you may see. You can put" in found.pop("no/one")
    fetched = {line.rpartition("/")[2] for line in asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {"config.json", "classes.json", "model.safetensors"}  # no other file, above all no pickle

    with hub_at(NOWHERE, HF_HUB_OFFLINE="1"):
        assert answers("owner/name@v1") == {"owner/name@v1": [6, pytest.approx(bias[0])]}  # from the cache
        found = answers("un/known", "owner/bert")
    assert found["owner/bert"].endswith("but a bert model. It holds: files that cannot be listed now.")
    offline = found["un/known"]
    assert offline.startswith("un/known is no file or folder here, and was not downloaded: the hub cannot be reached.")
    assert "config.json, classes.json, model.safetensors of https://huggingface.co/un/known" in offline


def test_a_hub_that_cannot_be_reached_is_asked_once(published, hub_at, monkeypatch):
    """The client would wait and try again for half a minute. What it has in its cache is found all the same."""
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    with serving({"owner/name": {"main": files}}) as (address, _), hub_at(address):
        held = answers("owner/name")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits {seconds} s"))
    with hub_at(NOWHERE):
        assert answers("owner/name") == held
        (said,) = answers("un/known").values()
    assert said.startswith("un/known is no file or folder here, and was not downloaded: the hub cannot be reached.")


def test_a_run_records_the_commit_that_it_starts_from(published, hub_at):
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    config = compose_train_config(["data.root=x", "model.pretrained=owner/name"])
    begun = {"model": {"pretrained": "owner/name@" + 40 * "0"}}
    with serving({"owner/name": {"main": files}}) as (address, _), hub_at(address):
        made = [take_from_pretrained(config, {}), take_from_pretrained(config, {}, begun)]
    commit = hashlib.sha1(b"main").hexdigest()  # of the fake; the branch may move, what a run started from does not
    assert [found.model.pretrained for found in made] == [f"owner/name@{commit}", f"owner/name@{40 * '0'}"]


def test_a_download_that_is_cut_is_one_line(published, hub_at, monkeypatch):
    """The client asks again for some seconds. What it raises is the HTTP library's, and no OSError."""
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serving({"owner/cut": {"main": files}}, cut="owner/cut") as (address, asked), hub_at(address):
        (found,) = answers("owner/cut").values()
    assert found.startswith("owner/cut is no file or folder here, and was not downloaded: ") and "\n" not in found
    assert sum(line.startswith("GET") and line.endswith("model.safetensors") for line in asked) > 1


def _republished(published: Path, folder: Path) -> None:
    """Writes the same network with another bias."""
    from nlvideo.weights.published import write_network

    trained = read_trained(published)
    state = evaluation_weights(trained.content)
    state["fc.bias"] = state["fc.bias"] + 1
    config = json.loads((published / "config.json").read_text())
    folder.mkdir()
    content = {"config": config, "step": 6, "classes": NAMES, "state": state, "precise": True}
    write_network(folder, content | {"checkpoint_sha256": "0"})
