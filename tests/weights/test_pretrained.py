import pickle
import urllib.error

import pytest
import torch
from conftest import composed
from torchvision.models import ResNet50_Weights, resnet50, resnet101

from nlvideo.models.non_local import NonLocalBlock
from nlvideo.models.resnet import VideoResNet
from nlvideo.weights.checkpoint_file import save_checkpoint
from nlvideo.weights.inflate import inflate
from nlvideo.weights.pretrained import check_blocks_can_learn, load_pretrained

CLASSES = ["a", "b", "c"]


def network_of(places=(), width=64, **options) -> VideoResNet:
    return VideoResNet("i3d", 50, "paper", 3, width=width, blocks=dict.fromkeys(places, NonLocalBlock), **options)


def load(network, pretrained, classes=CLASSES, *overrides) -> str:
    """Loads as a run does whose config is of this network, as far as the file says something of it."""
    config = composed("data.root=x", f"model.pretrained={pretrained}", *overrides)
    return load_pretrained(network, config, classes).sentence


def nlvideo_file(path, network, classes=CLASSES):
    save_checkpoint(path, {"model": network.state_dict(), "step": 1, "config": {}, "classes": classes})
    return str(path)


def test_inflation_spreads_a_kernel_over_time():
    kernel = torch.randn(4, 3, 7, 7)
    inflated = inflate(kernel, torch.Size([4, 3, 5, 7, 7]))
    assert inflated.shape == (4, 3, 5, 7, 7)
    torch.testing.assert_close(inflated.sum(2), kernel)
    assert all(torch.equal(inflated[:, :, t], inflated[:, :, 0]) for t in range(5))


@pytest.mark.parametrize("shape", [(4, 3, 5, 3, 3), (5, 3, 5, 7, 7), (4, 3, 7)])
def test_inflation_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="cannot be inflated"):
        inflate(torch.randn(4, 3, 7, 7), torch.Size(shape))


def test_torchvision_weights_are_inflated_and_their_head_is_never_kept(tmp_path):
    path = tmp_path / "resnet50.pth"
    two_d = resnet50(num_classes=3)  # even with the right number of classes
    torch.save(two_d.state_dict(), path)
    network = network_of(places=("res4.4",))
    head = network.fc.weight.clone()
    message = load(network, path)
    assert "inflated" in message and "a new head for 3 classes" in message and "1 new blocks" in message
    torch.testing.assert_close(network.conv1.weight.sum(2), two_d.conv1.weight)
    torch.testing.assert_close(network.layer3[0].conv1.weight.sum(2), two_d.layer3[0].conv1.weight)
    assert torch.equal(network.layer4[2].bn3.running_var, two_d.layer4[2].bn3.running_var)
    assert torch.equal(network.fc.weight, head)


def test_the_imagenet_source_asks_torchvision_for_the_weights(monkeypatch):
    two_d = resnet50()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda self, **options: two_d.state_dict())
    network = network_of()
    load(network, "imagenet")
    torch.testing.assert_close(network.conv1.weight.sum(2), two_d.conv1.weight)


def test_a_failed_download_names_the_file_and_its_place(monkeypatch):
    def fail(self, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", fail)
    with pytest.raises(FileNotFoundError, match=r"resnet50-\w+\.pth could not be downloaded .*no network.* put it at"):
        load(network_of(), "imagenet")


def test_an_nlvideo_checkpoint_with_the_same_classes_keeps_its_head(tmp_path):
    source = network_of(width=8)
    path = nlvideo_file(tmp_path / "checkpoint.pt", source)
    network = network_of(places=("res3.1", "res4.4"), width=8)
    message = load(network, path)
    assert "its head kept; 2 new blocks" in message
    assert torch.equal(network.fc.weight, source.fc.weight)
    assert torch.equal(network.layer4[1].conv1.weight, source.layer4[1].conv1.weight)


def test_an_nlvideo_checkpoint_with_other_classes_gets_a_new_head(tmp_path):
    source = network_of(width=8)
    path = nlvideo_file(tmp_path / "checkpoint.pt", source, ["a", "b", "d"])
    network = network_of(width=8)
    message = load(network, path)
    assert "a new head for 3 classes (the checkpoint has 3 other classes)" in message
    assert not torch.equal(network.fc.weight, source.fc.weight)
    assert torch.equal(network.conv1.weight, source.conv1.weight)


def test_blocks_that_the_network_lacks_are_refused(tmp_path):
    path = nlvideo_file(tmp_path / "checkpoint.pt", network_of(places=("res4.4",), width=8))
    with pytest.raises(ValueError, match=r"keys \(layer3.4_nl.* in it are not of this network"):
        load(network_of(width=8), path)


def test_weights_of_another_depth_are_refused(tmp_path):
    torch.save(resnet101().state_dict(), tmp_path / "r101.pth")
    with pytest.raises(ValueError, match="is of another network.*layer3.6"):
        load(network_of(), tmp_path / "r101.pth")


def test_weights_of_another_width_are_refused(tmp_path):
    torch.save(resnet50().state_dict(), tmp_path / "r50.pth")
    with pytest.raises(ValueError, match="does not fit the network: conv1.weight"):
        load(network_of(width=8), tmp_path / "r50.pth")


def test_a_missing_weight_is_refused(tmp_path):
    state = resnet50().state_dict()
    del state["layer2.1.conv2.weight"]
    torch.save(state, tmp_path / "r50.pth")
    with pytest.raises(ValueError, match="layer2.1.conv2.weight"):
        load(network_of(), tmp_path / "r50.pth")


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from the file ran')",))


def test_files_without_weights_are_refused_and_their_code_is_not_run(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": Malicious()}, tmp_path / "bad.pt")
    torch.save(network_of(width=8).state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:5000])
    for name in ("text.pt", "bad.pkl", "bad.pt", "cut.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint that can be read"):
            load(network_of(width=8), tmp_path / name)
    torch.save({"weights": [1, 2]}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="model.pretrained: .*other.pt: it is neither an nlvideo .*it holds: weights"):
        load(network_of(width=8), tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="nowhere.pt does not exist"):
        load(network_of(width=8), tmp_path / "nowhere.pt")


def test_new_blocks_behind_a_frozen_zero_gain_are_refused():
    with pytest.raises(ValueError, match="layer3.4_nl, which could never learn"):
        check_blocks_can_learn(network_of(places=("res4.4",), width=8, frozen_bn=True))
    check_blocks_can_learn(network_of(places=("res4.4",), width=8))
