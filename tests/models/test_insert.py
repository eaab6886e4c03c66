import copy
import pickle

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.video import r3d_18

import nlvideo
from nlvideo.models.global_context import GlobalContextBlock, SimplifiedNonLocalBlock
from nlvideo.models.insert import insert_blocks
from nlvideo.models.non_local import NonLocalBlock


def train_one_step(network, loss):
    loss.backward()
    torch.optim.SGD(network.parameters(), 0.01).step()
    assert torch.isfinite(loss)
    return loss


@pytest.mark.parametrize("block", [NonLocalBlock, SimplifiedNonLocalBlock, GlobalContextBlock])
def test_blocks_in_torchvisions_resnet50(block):
    network = resnet50(num_classes=3).eval()
    keys, image = list(network.state_dict()), torch.randn(2, 3, 32, 32)
    expected = network(image)
    blocks = {"layer3.4": block(1024), "layer2.1": block(512)}
    assert nlvideo.insert_blocks(network, blocks) is network
    assert [key for key in network.state_dict() if "context_block" not in key] == keys
    assert any(key.startswith("layer3.4.context_block.") for key in network.state_dict())
    torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
    train_one_step(network, network.train()(image).square().mean())
    gains = [b.bn.weight if block is NonLocalBlock else (b.expand if block is GlobalContextBlock else b.value).weight
             for b in blocks.values()]  # fmt: skip
    assert all(gain.any() for gain in gains)  # no longer zero


def test_blocks_in_torchvisions_r3d_18():
    network = r3d_18(num_classes=3).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    expected = network(clip)
    insert_blocks(network, {"layer2.1": NonLocalBlock(128), "layer3.0": GlobalContextBlock(256)})
    torch.testing.assert_close(network(clip), expected, rtol=0, atol=0)
    train_one_step(network, network.train()(clip).square().mean())


def test_the_papers_block_in_mask_r_cnn():
    """Sec. 6: one block before the last residual block of res4."""
    torch.manual_seed(0)
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96).eval()
    image = [torch.rand(3, 64, 80)]
    keys = list(network.state_dict())
    with torch.no_grad():
        before = network.backbone(image[0][None])["0"]
        insert_blocks(network, {"backbone.body.layer3.4": NonLocalBlock(1024)})
        assert torch.equal(network.backbone(image[0][None])["0"], before)
    assert [key for key in network.state_dict() if "context_block" not in key] == keys
    masks = torch.zeros(1, 64, 80, dtype=torch.uint8)
    masks[:, 10:40, 10:50] = 1
    target = {"boxes": torch.tensor([[10.0, 10, 50, 40]]), "labels": torch.tensor([1]), "masks": masks}
    network.train()
    for module in network.modules():  # random weights without trained statistics
        if isinstance(module, torch.nn.BatchNorm3d):
            assert module.training
    losses = network(image, [target])
    assert {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"} == losses.keys()
    train_one_step(network, sum(losses.values()))


def test_networks_with_blocks_can_be_copied_and_saved():
    network = insert_blocks(resnet50(num_classes=3), {"layer3.4": NonLocalBlock(1024)}).eval()
    torch.nn.init.ones_(network.layer3[4].context_block.bn.weight)
    image = torch.randn(1, 3, 64, 64)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(image), network(image))
    torch.nn.init.zeros_(other.layer3[4].context_block.bn.weight)
    assert not torch.equal(other(image), network(image))  # the copy uses its own block


def test_unknown_places_are_refused_and_the_network_is_unchanged():
    network = resnet50(num_classes=3)
    keys = list(network.state_dict())
    with pytest.raises(ValueError, match="no submodule 'layer3.9'. Siblings: layer3, layer3.0, layer3.1"):
        insert_blocks(network, {"layer3.4": NonLocalBlock(1024), "layer3.9": NonLocalBlock(1024)})
    assert list(network.state_dict()) == keys
    insert_blocks(network, {"layer3.4": NonLocalBlock(1024)})
    with pytest.raises(ValueError, match="'layer3.4' already has a block"):
        insert_blocks(network, {"layer3.4": NonLocalBlock(1024)})
