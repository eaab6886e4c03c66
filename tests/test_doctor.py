import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from nlvideo import doctor
from nlvideo.data.decoding import opening
from nlvideo.data.decoding.pyav_video import PyavVideo
from nlvideo.doctor import decoder_problem, device_lines, write_test_video
from nlvideo.models.kernels import AttentionKernel
from nlvideo.runtime import cores, device_facts


def test_the_command_lists_the_decoders_that_work():
    done = subprocess.run([sys.executable, "-m", "nlvideo.doctor"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pyav" in done.stdout and "correct frames" in done.stdout and "usable here: pyav" in done.stdout


@pytest.fixture
def file(tmp_path):
    write_test_video(tmp_path / "grey.mp4")
    return tmp_path / "grey.mp4"


def test_a_decoder_without_its_package_is_reported(file, monkeypatch):
    monkeypatch.setitem(opening.DECODERS, "torchcodec", ("torchcodec_video.TorchcodecVideo", "no_such_package", "pip"))
    assert "needs no_such_package" in decoder_problem("torchcodec", file)


def test_a_decoder_that_returns_wrong_frames_is_reported(file, monkeypatch):
    read = PyavVideo.read
    assert decoder_problem("pyav", file) is None
    monkeypatch.setattr(PyavVideo, "read", lambda self, indices, size: read(self, [i + 1 for i in indices], size))
    assert decoder_problem("pyav", file) == "returns frames (6, 19, 20, 41) for (5, 18, 19, 40)"


SMI = "NVIDIA H100 80GB HBM3, 580.65.06"


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that decides what nvidia-smi prints (None: it is missing) while torch sees no GPU."""

    def make(smi: str | None, built: bool = True) -> None:
        def run(command, **_):
            if smi is None:
                raise FileNotFoundError(command[0])
            return subprocess.CompletedProcess(command, 0, smi, "")

        monkeypatch.setattr(device_facts.subprocess, "run", run)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


@pytest.fixture
def h100(machine, monkeypatch):
    """A machine with two H100s and 16 cores."""
    machine(f"{SMI}\n{SMI}\n")
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=85_000_000_000)
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_properties": properties,
        "mem_get_info": (84_100_000_000, 85_000_000_000),
        "get_device_capability": (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(device_facts, "library_versions", lambda: {"CUDA": "13.0", "cuDNN": "9.24.0", "NCCL": "2.30.7"})
    monkeypatch.setattr(doctor, "library_versions", device_facts.library_versions)
    for module in (cores, device_facts, doctor):
        monkeypatch.setattr(module, "usable_cores", lambda: 16)
    kernels = {256: AttentionKernel("flash", ("flash",)), 512: AttentionKernel("ours", ("efficient",))}
    monkeypatch.setattr(doctor, "attention_kernel", lambda _device, _dtype, width: kernels[width])
    monkeypatch.setattr(doctor, "batch_norm_kernel", lambda *_: "native, 4 dimensions")


def test_a_gpu_is_described_in_eight_lines(h100):
    lines = device_lines()
    assert lines[:6] == [
        "device    NVIDIA H100 80GB HBM3, bfloat16; 2 of them",
        "gpu       capability 9.0, 84.1 of 85.0 GB free, driver 580.65.06",
        "libraries CUDA 13.0, cuDNN 9.24.0, NCCL 2.30.7",
        "numbers   bfloat16 yes, TF32 yes (tf32=true), float16 yes",
        "attention flash at 256 channels, ours at 512 channels",
        "batchnorm native, 4 dimensions (bfloat16)",
    ]
    assert lines[7] == "cores     16, 8 for each GPU; data.num_workers=null gives each 7 workers"
    assert len(lines) == 8  # with versions and decoders ten


def test_a_gpu_whose_kernels_fail_is_still_described(h100, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(doctor, "batch_norm_kernel", fail)
    assert "batchnorm not known: CUDA error: no kernel image is available for execution on the device" in device_lines()


def test_a_gpu_that_does_not_answer_is_reported(h100, monkeypatch):
    def fail(_):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    (line,) = device_lines()
    assert line.endswith("does not answer: CUDA error: all CUDA-capable devices are busy or unavailable")


@pytest.mark.parametrize(("smi", "built"), [(None, True), ("", True), ("", False)])
def test_a_machine_without_a_gpu_says_so_in_one_line(machine, smi, built):
    machine(smi, built)
    assert device_lines()[1:] == ["gpu       none: nvidia-smi sees no GPU here"]


def test_a_torch_without_cuda_on_a_machine_with_a_gpu_is_named(machine):
    machine(SMI, built=False)
    line = device_lines()[1]
    assert "built without CUDA, but nvidia-smi sees NVIDIA H100 80GB HBM3 (driver 580.65.06); see https://" in line


def test_what_pytorch_says_of_an_old_driver_is_shown(machine, monkeypatch):
    def unavailable():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old\nmore", stacklevel=1)
        return False

    machine("Tesla V100, 450.51")
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    line = device_lines()[1]
    assert "Tesla V100 (driver 450.51)" in line and "the driver may be too old for it; PyTorch says: CUDA init" in line
    assert "more" not in line


def test_hidden_gpus_are_named(machine, monkeypatch):
    machine(SMI)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES= may hide it" in device_lines()[1]


@pytest.mark.parametrize(("number", "version"), [(92400, "9.24.0"), (8907, "8.9.7"), (90100, "9.1.0")])
def test_cudnn_counts_in_two_ways(number, version, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert device_facts.library_versions()["cuDNN"] == version
