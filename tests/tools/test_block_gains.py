import runpy
import sys
from pathlib import Path

import pytest
import torch
from runs import config_of

from nlvideo.build.model import build_model
from nlvideo.config.compose import to_container
from nlvideo.weights.checkpoint_file import save_checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "block_gains.py"


def test_gains_of_checkpoints(tmp_path, monkeypatch, capsys):
    config = config_of(tmp_path, tmp_path, "block.places={r50: [res3.1, res4.4]}")
    network = build_model(config.model, config.block, config.data, 3)
    torch.nn.init.constant_(network.get_submodule("layer3.4_nl").bn.weight, 0.25)
    content = {"model": network.state_dict(), "step": 1, "config": to_container(config), "classes": ["a", "b", "c"]}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name / "checkpoint.pt", content)
    main = runpy.run_path(str(TOOL))["main"]
    monkeypatch.setattr(sys, "argv", [TOOL.name, str(tmp_path / "first/checkpoint.pt"), str(tmp_path / "second")])
    main()
    printed = capsys.readouterr().out
    assert printed.count("res3.1 0.000  res4.4 0.250") == 2 and "first" in printed and "second" in printed
    monkeypatch.setattr(sys, "argv", [TOOL.name, str(tmp_path / "none.pt")])
    with pytest.raises(SystemExit, match="^error: .*none.pt does not exist"):
        main()
