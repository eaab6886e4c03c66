"""Layouts against the figures of the paper's Table 2e and of GCNet, and against the 2D network they inflate."""

import functools

import pytest
import torch
from conftest import composed
from torchvision.models import resnet50

from nlvideo.build.model import CONTEXT_BLOCKS, build_model
from nlvideo.models.cost import count_cost
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.weights.inflate import inflate_state_dict


def built(*overrides, num_classes=400):
    config = composed("data.root=x", *overrides)
    with torch.device("meta"):
        return build_model(config.model, config.block, config.data, num_classes), config


@functools.cache
def cost(*overrides):
    network, config = built(*overrides)
    return count_cost(network, config.data.num_frames, config.data.crop_size, config.data.crop_size)


@pytest.mark.parametrize(
    ("overrides", "params", "multiply_adds"),
    [
        (["model=i3d_333_r101"], 1.5, 1.8),
        (["model=i3d_r101"], 1.2, 1.5),
        (["model=c2d_r101", "block=nl5"], 1.2, 1.2),
        (["model=c2d_r50", "block=nl5"], 0.7, 0.8),  # Sec. 5.1: "~70% parameters and ~80% FLOPs"
    ],
)
def test_table_2e(overrides, params, multiply_adds):
    base, network = cost("model=c2d_r101"), cost(*overrides)
    assert round(network.params / base.params, 1) == params
    assert round(network.multiply_adds / base.multiply_adds, 1) == multiply_adds


@pytest.mark.parametrize(
    ("block", "params"), [("none", 32.45), ("nl5", 39.81), ("snl5", 36.13), ("gc5", 34.30), ("gc_all", 42.45)]
)
def test_gcnets_parameters(block, params):
    found = cost("model=slow_r50", f"block={block}", "data.num_frames=8").params
    assert found / 1e6 == pytest.approx(params, abs=0.011)


def test_forms_without_the_matrix_cost_less():
    for mode in ("dot_product", "concatenation"):
        found = cost("model=c2d_r50", "block=nl5", f"block.mode={mode}")
        assert found.multiply_adds_computed < found.multiply_adds
    found = cost("model=c2d_r50", "block=nl5")
    assert found.multiply_adds_computed == found.multiply_adds


def test_activation_memory_is_what_training_saves_for_the_backward_pass():
    network, config = built("model=c2d_r50", "model.width=8")
    network = build_model(config.model, config.block, config.data, 10)
    found = count_cost(network, 8, 64, 64).activation_bytes
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    weights = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        network.train()(torch.randn(1, 3, 8, 64, 64))
    real = sum(size for pointer, (size, _) in kept.items() if pointer not in weights)
    assert found == pytest.approx(real, rel=0.05)


def test_slow_has_temporal_convolutions_in_the_last_two_stages_only():
    network, _ = built("model=slow_r50", "data.num_frames=8")
    kernels = [{b.conv1.kernel_size[0] for b in getattr(network, f"layer{s}")} for s in (1, 2, 3, 4)]
    assert kernels == [{1}, {1}, {3}, {3}] and network.conv1.kernel_size[0] == 1


def test_i3d_333_inflates_the_middle_of_the_same_blocks():
    network, _ = built("model=i3d_333_r50")
    assert network.layer2[0].conv2.kernel_size == (3, 3, 3) and network.layer2[0].conv1.kernel_size == (1, 1, 1)
    assert network.layer2[1].conv2.kernel_size == (1, 3, 3)


@pytest.mark.parametrize("layout", ["i3d", "i3d_333"])
def test_an_inflated_network_on_a_still_clip_equals_the_2d_network_away_from_the_ends(layout):
    """Zero padding spreads from both ends of the clip, by one frame for each temporal convolution."""
    torch.manual_seed(0)
    two_d = resnet50().eval()
    for module in two_d.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
    config = composed("data.root=x", f"model={layout}_r50", "model.stem=all_frames", "data.num_frames=41")
    network = build_model(config.model, config.block, config.data, 1000).eval()
    network.load_state_dict(inflate_state_dict(two_d.state_dict(), network.state_dict()))
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        x = two_d.maxpool(two_d.relu(two_d.bn1(two_d.conv1(image))))
        expected = two_d.layer4(two_d.layer3(two_d.layer2(two_d.layer1(x))))
        found = network.features(image.unsqueeze(2).expand(-1, -1, 41, -1, -1))
    # conv1 reaches 2 frames, each of the 9 inflated blocks one more
    middle = found[:, :, 11:30]
    assert middle.shape[2] == 19
    error = (middle - expected.unsqueeze(2)).transpose(1, 2).flatten(2).norm(dim=2) / expected.norm()
    assert error.max() <= 1e-5
    border = (found[:, :, 0] - expected).norm() / expected.norm()
    assert border > 1e-3  # otherwise the test proves nothing


@pytest.mark.parametrize("block", ["gc_all", "se_all"])
def test_blocks_inside_stand_before_the_sum(block):
    network, _ = built("model=slow_r50", f"block={block}", "data.num_frames=8")
    found = [name for name, module in network.named_modules() if isinstance(module, CONTEXT_BLOCKS)]
    assert len(found) == 13 and found[0] == "layer2.0.context" and found[-1] == "layer4.2.context"


def test_new_additive_blocks_do_not_change_a_network():
    torch.manual_seed(0)
    config = composed("data.root=x", "model=slow_r50", "model.width=8", "data.num_frames=4")
    plain = build_model(config.model, config.block, config.data, 5).eval()
    clip = torch.randn(1, 3, 4, 64, 64)
    for block in ("nl5", "snl5", "gc5", "gc_all"):
        config = composed("data.root=x", "model=slow_r50", "model.width=8", "data.num_frames=4", f"block={block}")
        network = build_model(config.model, config.block, config.data, 5).eval()
        missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
        assert missing and not unexpected
        assert torch.equal(network(clip), plain(clip)), block


def test_groups_attend_within_four_frames_only():
    torch.manual_seed(0)
    block, whole = NonLocalBlock(6, group_frames=4).double().eval(), NonLocalBlock(6).double().eval()
    torch.nn.init.normal_(block.bn.weight)
    whole.load_state_dict(block.state_dict())
    x = torch.randn(2, 6, 8, 4, 4, dtype=torch.float64)
    expected = torch.cat([whole(x[:, :, :4]), whole(x[:, :, 4:])], 2)
    torch.testing.assert_close(block(x), expected)
    with pytest.raises(ValueError, match="group_frames=4 does not divide the 6 frames of the feature map"):
        block(x[:, :, :6])


def test_long_clips_group_res3_only():
    network, _ = built("experiment=i3d_r50_nl5_128x1", "model.pretrained=null")
    groups = {name: m.group_frames for name, m in network.named_modules() if isinstance(m, NonLocalBlock)}
    assert groups["layer2.1_nl"] == groups["layer2.3_nl"] == 4 and groups["layer3.5_nl"] is None
    assert all(m.bn is None for m in network.modules() if isinstance(m, NonLocalBlock))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["block=gc5", "block.mode=dot_product"], "block.mode=dot_product has no effect on block.kind=global_context"),
        (["block=nl5", "block.ratio=16"], "block.ratio=16 has no effect on block.kind=non_local"),
        (["block=snl5", "block.norm=false"], "block.norm=False has no effect .* which takes no options"),
        (["block=nl1", "+block.group_frames.res3=4"], "block.group_frames.res3=4: there is no block in res3"),
        (["block=nl1", "block.kind=attention"], "block.kind='attention' is unknown. Choose from: none, non_local"),
        (["block=nl1", "block.places.r50=[res4.1,res4.1]"], "block.places.r50 names a place twice"),
    ],
)
def test_options_that_do_nothing_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        built(*overrides)


def test_the_plain_form_is_the_same_function():
    torch.manual_seed(0)
    for mode in ("gaussian", "embedded_gaussian", "dot_product", "concatenation"):
        block = NonLocalBlock(8, mode=mode).double().eval()
        torch.nn.init.normal_(block.bn.weight)
        x = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
        fast = block(x)
        assert block.attention_map(x).shape == (2, 48, 12)
        block.plain = True
        torch.testing.assert_close(block(x), fast, rtol=1e-10, atol=1e-10)
