"""Training and evaluation from lists of the forms that the field has, with the labels that reach the network."""

import csv
import json

import numpy as np
import pytest
from conftest import write_grey_video
from runs import config_of, rows_of

from nlvideo.config.schema import EvaluateConfig
from nlvideo.evaluate import evaluate
from nlvideo.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos under the names that each kind of list gives them."""
    root = tmp_path_factory.mktemp("lists")
    for name in ("long", "v_long", "other", "abseiling/AAAAAAAAAAA_000010_000020", "air_drumming/BBBBBBBBBBB", "yoga"):
        write_grey_video(root / f"{name}.mp4", 60)
    return root


def official(label, name, start):
    return f"{label},{name},{start},{start + 10},val,0\n"


HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
CHARADES = "id,subject,actions,length\n"
LISTS = {
    "header": (
        "train.csv",
        "video_path,label,fold\nlong.mp4,1,0\nother.mp4,0,1\nyoga.mp4,1,2\n",
        [],
        {"long.mp4": "1", "other.mp4": "0", "yoga.mp4": "1"},
    ),
    "names": (
        "train.csv",
        "path;label\nlong.mp4;run\nother.mp4;jump\nyoga.mp4;run\n",
        [],
        {"long.mp4": "run", "other.mp4": "jump", "yoga.mp4": "run"},
    ),
    "kinetics": (
        "train.csv",
        HEADER
        + official("abseiling", "AAAAAAAAAAA", 10)
        + official("air drumming", "BBBBBBBBBBB", 5)
        + official("abseiling", "CCCCCCCCCCC", 5),
        [],
        {"abseiling/AAAAAAAAAAA_000010_000020.mp4": "abseiling", "air_drumming/BBBBBBBBBBB.mp4": "air drumming"},
    ),
    "parts": (
        "train.csv",
        "path,start,end,label\nlong.mp4,0,1,run\nlong.mp4,1.2,2.4,jump\nother.mp4,0.4,1,run\n",
        [],
        {"long.mp4#0-1": "run", "long.mp4#1.2-2.4": "jump", "other.mp4#0.4-1": "run"},
    ),
    "several labels": (
        "train.txt",
        "long.mp4 0 2\nother.mp4 1\nyoga.mp4 2\n",
        ["data.multi_label=true"],
        {"long.mp4": "0;2", "other.mp4": "1", "yoga.mp4": "2"},
    ),
    "activitynet": (
        "train.json",
        json.dumps(
            {
                "database": {
                    "long": {
                        "subset": "training",
                        "annotations": [{"label": "run", "segment": [0, 1]}, {"label": "jump", "segment": [1, 2]}],
                    },
                    "other": {"subset": "training", "annotations": [{"label": "run", "segment": [0.5, 1.5]}]},
                }
            }
        ),
        [],
        {"long.mp4#0-1": "run", "long.mp4#1-2": "jump", "other.mp4#0.5-1.5": "run"},
    ),
    "charades": (
        "train.csv",
        CHARADES + "long,S1,c001 2.00 1.00;c000 0.00 1.50,2.4\nother,S1,c001 0.50 2.00,2.4\nyoga,S2,,2.4\n",
        ["data.format=charades", "data.num_classes=2"],
        {"long.mp4": "c000;c001", "other.mp4": "c001", "yoga.mp4": ""},
    ),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_is_trained_and_evaluated(folder, tmp_path, kind):
    name, text, options, labels = LISTS[kind]
    (tmp_path / name).write_text(text)
    lists = [f"data.train={tmp_path}/{name}", f"data.val={tmp_path}/{name}"]
    config = config_of(folder, tmp_path / "run", *lists, *options, "optim.max_steps=2", "validate_every_steps=2")
    train(config)
    assert np.isfinite([row["loss"] for row in rows_of(tmp_path / "run") if row["split"] == "train"]).all()
    result = evaluate(
        EvaluateConfig(checkpoint=f"{tmp_path}/run/checkpoint.pt", data=config.data, report=False, num_threads=1)
    )
    assert result["num_videos"] >= 2 and result["num_undecodable"] == 0
    (file,) = (tmp_path / "run").glob("evaluation_*/predictions.csv")
    with open(file, newline="") as opened:
        targets = {row["video"]: row["target"] for row in csv.DictReader(opened)}
    assert targets == labels
