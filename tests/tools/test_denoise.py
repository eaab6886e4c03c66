import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_nl_means

TOOLS = Path(__file__).parent.parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
denoise = __import__("denoise")
sys.path.remove(str(TOOLS))


def picture(size=48) -> np.ndarray:
    """Returns stripes and a disc (size, size, 3), whose patches repeat."""
    y, x = np.mgrid[:size, :size]
    stripes = ((x // 5) % 2)[..., None] * [0.8, 0.5, 0.2] + 0.1
    disc = np.hypot(y - size / 2, x - size / 2) < size / 4
    return np.where(disc[..., None], [0.2, 0.7, 0.9], stripes)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_equals_scikit_images_non_local_means(channels):
    clean = astronaut()[100:244:3, 150:294:3, :channels] / 255
    noisy = clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)
    theirs = denoise_nl_means(noisy.squeeze(), 7, 48, 0.3, fast_mode=False, channel_axis=2 if channels > 1 else None)
    theirs = theirs.reshape(clean.shape)
    ours = denoise.non_local_means(torch.from_numpy(noisy).permute(2, 0, 1), 0.3, 7).permute(1, 2, 0).numpy()
    assert abs(ours - theirs).max() <= 0.01  # scikit-image ignores weights below exp(-5)
    theirs, mine = (peak_signal_noise_ratio(clean, image, data_range=1) for image in (theirs, ours))
    assert abs(mine - theirs) <= 0.1
    assert denoise.psnr(torch.from_numpy(ours), torch.from_numpy(clean)) == pytest.approx(mine, abs=1e-6)


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["denoise.py", *map(str, arguments)])
    denoise.main()


def test_non_local_means_gain_more_than_a_local_mean(tmp_path, monkeypatch, capsys):
    Image.fromarray((picture() * 255).astype(np.uint8)).save(tmp_path / "a.png")
    gains = {}
    for method in ("nlm", "gaussian"):
        run(monkeypatch, tmp_path / "a.png", "--method", method, "--output", tmp_path / f"{method}.png")
        words = capsys.readouterr().out.split()
        gains[method] = float(words[words.index("before,") + 1]) - float(words[1])
        with Image.open(tmp_path / f"{method}.png") as image:
            assert image.size[0] > 100
    assert gains["nlm"] > 6 and gains["nlm"] > gains["gaussian"]


def test_user_errors_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (2, 2)).save(tmp_path / "small.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "large.png")
    for arguments, message in (
        (["text.png"], "text.png cannot be read as a picture"),
        (["none.png"], "none.png cannot be read as a picture"),
        (["small.png"], "--patch-size 7 is too large for 2 x 2 pixels"),
        (["large.png", "--output", tmp_path / "a.txt"], "a.txt cannot be written: Format 'txt' is not supported"),
        (["large.png", "--output", tmp_path / "no" / "a.png"], "a.png cannot be written: "),
    ):
        with pytest.raises(SystemExit, match="^error: .*" + message):
            run(monkeypatch, tmp_path / arguments[0], *arguments[1:])
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "small.png", "--patch-size", 4)
    assert "--patch-size must be odd" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 3


def test_the_program_runs_as_a_process(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    command = [sys.executable, TOOLS / "denoise.py", tmp_path / "a.png", "--noise", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'a_denoised.png'}\n", done.stderr
