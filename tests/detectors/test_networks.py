"""The detectors: torchvision's own, with blocks at the papers' places that change nothing before training."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn, keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from nlvideo.models.cost import num_params
from nlvideo.models.non_local import NonLocalBlock
from nlvideo.runtime.errors import UserError

GCNET = {  # million parameters of Mask R-CNN R50 (GCNet, Cao et al. 2019, ablations on COCO)
    ("none", 16): 44.4,
    ("nl1", 16): 46.5,
    ("snl", 16): 45.4,
    ("gc1", 16): 44.5,
    ("gc_all", 16): 46.9,
    ("gc_all", 4): 54.4,
}
EXTRA_PERCENT = {"nl1": 5.0, "snl": 0.01, "gc1": 0.01, "gc_all": 0.1}  # of the multiply-adds, at most
SIZE = (800, 1344)


def settings_of(tools, **changes):
    small = {"backbone": "thin", "num_classes": 3, "num_keypoints": 4, "min_size": (96,)}
    return tools.networks.NetworkSettings(**small | changes)


def multiply_adds(network) -> int:
    """Returns those of a picture of SIZE with 1,000 proposals and 100 detections; pairs form matrices, as in papers."""
    network = copy.deepcopy(network).to("meta").eval()
    for module in network.modules():
        if isinstance(module, NonLocalBlock):
            module.plain = True
    heads = network.roi_heads
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = network.backbone(torch.empty(1, 3, *SIZE, device="meta"))
        network.rpn.head(list(features.values()))
        heads.box_predictor(heads.box_head(torch.empty(1000, 256, 7, 7, device="meta")))
        heads.mask_predictor(heads.mask_head(torch.empty(100, 256, 14, 14, device="meta")))
    return counter.get_total_flops() // 2


def test_parameters_and_multiply_adds_are_the_papers(tools):
    built = {
        key: tools.networks.build_detector(tools.networks.NetworkSettings(block=(key[0],), ratio=key[1]))
        for key in GCNET
    }
    for key, million in GCNET.items():
        assert num_params(built[key]) / 1e6 == pytest.approx(million, abs=0.06), key
    base = multiply_adds(built["none", 16])
    assert base / 1e9 == pytest.approx(269, abs=1)
    for (kind, ratio), network in built.items():
        if kind != "none":
            extra = 100 * (multiply_adds(network) / base - 1)
            assert 0 < extra < EXTRA_PERCENT[kind], (kind, ratio, extra)


def test_resnet101_and_its_blocks(tools):
    network = tools.networks.build_detector(tools.networks.NetworkSettings(backbone="resnet101", block=("nl1",)))
    assert [*tools.networks.context_blocks(network)] == ["backbone.body.layer3.21"]
    assert num_params(network) / 1e6 == pytest.approx(65.39, abs=0.01)


@pytest.mark.parametrize(
    "task, theirs",
    [
        ("masks", maskrcnn_resnet50_fpn),
        ("keypoints", keypointrcnn_resnet50_fpn),
        ("boxes", fasterrcnn_resnet50_fpn),
    ],
)
def test_the_builder_makes_torchvisions_network(tools, task, theirs):
    sizes = {"min_size": 64, "max_size": 64}
    theirs = theirs(weights=None, weights_backbone=None, num_classes=4, **sizes).eval()
    settings = settings_of(tools, backbone="resnet50", task=task, num_keypoints=17, min_size=(64,), max_size=64)
    ours = tools.networks.build_detector(settings).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("tracked")}
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in ours.state_dict().items()}
    ours.load_state_dict(state)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in ours.modules())
    picture = torch.rand(3, 50, 64)
    with torch.no_grad():
        features = zip(ours.backbone(picture[None]).values(), theirs.backbone(picture[None]).values(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in features)  # batch norm rounds otherwise


@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize("block", [("nl1",), ("snl",), ("gc1",), ("gc_all",), ("head4", "nl1", "gc_all")])
def test_new_blocks_leave_the_detections_as_they_are(tools, block, train_bn):
    task = "keypoints" if "head4" in block else "masks"
    changes = {"task": task, "train_bn": train_bn, "ratio": 4}
    plain = tools.networks.build_detector(settings_of(tools, **changes))
    blocked = tools.networks.build_detector(settings_of(tools, **changes, block=block))
    blocked.load_state_dict(plain.state_dict(), strict=False)
    for network in (plain, blocked):
        network.eval().roi_heads.score_thresh = 0.0  # an untrained network is sure of nothing
    pictures = [torch.rand(3, 90, 120), torch.rand(3, 64, 64)]
    with torch.no_grad():
        for a, b in zip(plain(pictures), blocked(pictures), strict=True):
            assert len(a["boxes"]) > 10
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_blocks_stand_where_the_papers_have_them(tools):
    build, names = tools.networks.build_detector, tools.networks.context_blocks
    every = names(build(settings_of(tools, backbone="resnet50", block=("gc_all",))))
    assert [*every] == [
        f"backbone.body.layer{s}.{i}.bn3" for s, count in ((2, 4), (3, 6), (4, 3)) for i in range(count)
    ]
    network = build(settings_of(tools, task="keypoints", block=("head4",)))
    head = network.roi_heads.keypoint_head
    assert [*names(network)] == [f"roi_heads.keypoint_head.{i}" for i in (3, 7, 11, 15)] and len(head) == 16
    seen = []
    for block in names(network).values():
        block.register_forward_hook(lambda _, x, y: seen.append(y.shape))
    assert head(torch.zeros(0, 32, 14, 14)).shape == (0, 32, 14, 14)  # a picture without detections
    assert seen == [(0, 32, 14, 14)] * 4


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"block": ("head4",)}, "--task masks has no keypoint head"),
        ({"block": ("gc_all",), "backbone": "resnet18"}, "resnet18 has no bottlenecks"),
        ({"block": ("nl1", "snl")}, "same place"),
        ({"block": ("gc1",), "ratio": 4096, "backbone": "resnet50"}, "ratio=4096"),
    ],
)
def test_a_block_without_a_place_is_refused(tools, changes, part):
    with pytest.raises(UserError, match=part):
        tools.networks.build_detector(settings_of(tools, **changes))


# Weights


def saved(tmp_path, state, name="weights.pth"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def test_an_imagenet_resnet_fills_the_backbone(tools, tmp_path):
    classifier = resnet50()
    network = tools.networks.build_detector(settings_of(tools, backbone="resnet50", block=("nl1", "gc_all")))
    fpn = network.backbone.fpn.inner_blocks[0][0].weight.clone()
    origin = tools.networks.load_weights(network, saved(tmp_path, classifier.state_dict()), False)
    assert "new blocks: backbone.body.layer2.0.bn3" in origin and "backbone.body.layer3.4" in origin
    assert torch.equal(network.backbone.body.layer4[2].conv3.weight, classifier.layer4[2].conv3.weight)
    assert torch.equal(network.backbone.body.layer1[0].bn1.running_var, classifier.layer1[0].bn1.running_var)
    assert torch.equal(network.backbone.fpn.inner_blocks[0][0].weight, fpn)
    tools.networks.prepare(network, frozen_start=True)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(".layer1." in name or "body.conv1" in name for name in trained)
    assert any(".layer2.0.conv1" in name for name in trained) and any("context_block" in name for name in trained)


def test_a_detector_of_other_classes_needs_a_new_head(tools, tmp_path):
    other = tools.networks.build_detector(settings_of(tools, num_classes=7))
    file = saved(tmp_path, other.state_dict())
    network = tools.networks.build_detector(settings_of(tools, block=("nl1",)))
    with pytest.raises(UserError, match="another network or head .*--new-head") as error:
        tools.networks.load_weights(network, file, False)
    assert len(str(error.value).splitlines()) == 1
    box = network.roi_heads.box_predictor.cls_score.weight.clone()
    origin = tools.networks.load_weights(network, file, True)
    assert origin.endswith("new blocks: backbone.body.layer3.0")
    assert torch.equal(network.roi_heads.box_head.fc6.weight, other.roi_heads.box_head.fc6.weight)
    assert torch.equal(network.roi_heads.box_predictor.cls_score.weight, box)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda n, s: n.build_detector(s._replace(task="keypoints")).state_dict(), "another network or head"),
        (lambda n, s: n.build_detector(s._replace(backbone="resnet18")).state_dict(), "another network or head"),
        (lambda n, s: resnet50().state_dict(), "another network or head"),
        (lambda n, s: {"res2_0_branch2a_w": torch.zeros(1)}, "neither a ResNet"),
        (lambda n, s: {key: v for key, v in n.build_detector(s).state_dict().items() if "rpn" not in key}, "rpn"),
    ],
)
def test_weights_of_another_network_are_refused(tools, tmp_path, make, part):
    settings = settings_of(tools)
    file = saved(tmp_path, make(tools.networks, settings))
    with pytest.raises(UserError, match=part) as error:
        tools.networks.load_weights(tools.networks.build_detector(settings), file, False)
    assert "weights.pth" in str(error.value) and len(str(error.value).splitlines()) == 1


# Draws


def test_draws_of_an_image_depend_on_its_seed_alone(tools):
    network = tools.networks.build_detector(settings_of(tools))
    theirs = network.rpn.fg_bg_sampler
    tools.networks.prepare(network, frozen_start=False)
    labels = [torch.randint(-1, 2, (900,)).float() for _ in range(3)]

    def drawn(images, seeds):
        tools.networks.seed_draws(network, seeds)
        return network.rpn.fg_bg_sampler([labels[i] for i in images])

    together, alone = drawn([0, 1, 2], [5, 6, 7]), drawn([2], [7])
    assert torch.equal(together[0][2], alone[0][0]) and torch.equal(together[1][2], alone[1][0])
    assert not torch.equal(drawn([2], [8])[0][0], alone[0][0])
    torch.manual_seed(7)
    assert torch.equal(theirs([labels[2]])[0][0], alone[0][0])
    assert alone[0][0].sum() + alone[1][0].sum() == 256
