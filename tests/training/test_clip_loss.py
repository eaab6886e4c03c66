"""Losses with weights and smoothing, and mixed clips."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import composed
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from nlvideo.data.lists.path_list import read_table
from nlvideo.runtime.errors import UserError
from nlvideo.training.clip_loss import ClipLoss, class_weights
from nlvideo.training.mixing import STREAM, PairMixer

LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 0])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0])


def test_the_plain_loss_is_torchs():
    assert torch.equal(ClipLoss(False)(LOGITS, TARGETS), cross_entropy(LOGITS, TARGETS))
    several = torch.rand(8, 3) < 0.5
    plain = binary_cross_entropy_with_logits(LOGITS, several.double())
    assert torch.equal(ClipLoss(True)(LOGITS, several), plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(smoothing, soft):
    loss = ClipLoss(False, smoothing, WEIGHTS)
    targets = one_hot(TARGETS, 3).float() if soft else TARGETS
    parts = [loss(LOGITS[i : i + 2], targets[i : i + 2]) for i in range(0, 8, 2)]
    torch.testing.assert_close(loss(LOGITS, targets), torch.stack(parts).mean())
    # by hand
    shares = one_hot(TARGETS, 3).double() * (1 - smoothing) + smoothing / 3
    expected = -(shares * WEIGHTS.double() * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(LOGITS, targets), expected)


def test_smoothing_moves_the_targets_of_many_labels_to_a_half():
    several = torch.rand(8, 3) < 0.5
    expected = binary_cross_entropy_with_logits(LOGITS, torch.where(several, 0.95, 0.05).double(), WEIGHTS.double())
    torch.testing.assert_close(ClipLoss(True, 0.1, WEIGHTS)(LOGITS, several), expected)


def table_of(tmp_path, counts):
    rows = [f"{k}-{i}.mp4 {k}" for k, count in enumerate(counts) for i in range(count)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return read_table(str(tmp_path), "list.csv", None, len(counts))


def test_class_weights_are_those_of_their_formula(tmp_path):
    table, optim = table_of(tmp_path, [36, 3]), composed("data.root=x").optim
    assert class_weights(table, optim, "none") is None
    inverse = class_weights(table, dataclasses.replace(optim, class_weights="inverse"), "none").numpy()
    assert inverse[1] / inverse[0] == pytest.approx(12) and np.average(inverse, weights=[36, 3]) == pytest.approx(1)
    changed = dataclasses.replace(optim, class_weights="effective", class_weights_beta=0.9)
    effective = class_weights(table, changed, "none").numpy()
    assert effective[1] / effective[0] == pytest.approx((1 - 0.9**36) / (1 - 0.9**3))
    changed = dataclasses.replace(optim, class_weights="effective", class_weights_beta=0.0)
    assert class_weights(table, changed, "none").tolist() == [1, 1]
    # drawn evenly, the classes have half of the clips each, and weights with the same mean
    both = class_weights(table, dataclasses.replace(optim, class_weights="inverse"), "classes").numpy()
    assert both.mean() == pytest.approx(1) and both[1] / both[0] == pytest.approx(12)
    with pytest.raises(UserError, match="1 of 3 classes have no training video .2."):
        class_weights(table_of(tmp_path, [4, 2, 0]), dataclasses.replace(optim, class_weights="inverse"), "none")


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_pairs_are_mixed_the_same_in_whatever_parts_they_come(mixup, cutmix):
    mixer, clips = PairMixer(mixup, cutmix, seed=3), torch.rand(8, 3, 2, 12, 20)
    places = torch.arange(40, 48)
    whole = mixer(clips, TARGETS, places, 3)
    parts = [mixer(clips[i : i + 2], TARGETS[i : i + 2], places[i : i + 2], 3) for i in range(0, 8, 2)]
    assert torch.equal(whole[0], torch.cat([p[0] for p in parts]))
    assert torch.equal(whole[1], torch.cat([p[1] for p in parts]))
    assert not torch.equal(whole[0], clips)
    torch.testing.assert_close(whole[1].sum(1), torch.ones(8))
    # Nothing is lost: the two clips of a pair add up to what they were, and so do their targets.
    torch.testing.assert_close(whole[0][::2] + whole[0][1::2], clips[::2] + clips[1::2])
    shares = one_hot(TARGETS, 3).float()
    torch.testing.assert_close(whole[1][::2] + whole[1][1::2], shares[::2] + shares[1::2])


@pytest.mark.parametrize("together", [2, 3])
def test_clips_of_one_video_are_mixed_with_those_of_the_next(together):
    mixer = PairMixer(0.4, 0.0, seed=3, clips_per_video=together)
    size, first = 2 * together, 6 * together
    clips = torch.eye(2 * size).view(2 * size, 1, 1, 1, 2 * size).expand(-1, 3, 2, 4, -1)
    classes, places = torch.arange(2 * size), first + torch.arange(2 * size)
    mixed, shares = mixer(clips, classes, places, 2 * size)
    torch.testing.assert_close(mixed[:, 0, 0, 0], shares)  # a clip shows what its target says
    kept = []
    for i in range(2 * size):
        other = i + together if i % size < together else i - together
        assert set(shares[i].nonzero().flatten().tolist()) <= {i, other}
        kept.append(shares[i, i].item())
        assert kept[-1] == shares[other, other].item()
    assert len(set(kept)) == size  # each pair draws its own
    parts = [mixer(clips[a : a + size], classes[a : a + size], places[a : a + size], 2 * size) for a in (0, size)]
    assert torch.equal(mixed, torch.cat([part[0] for part in parts]))
    with pytest.raises(AssertionError):  # half of a pair is elsewhere
        mixer(clips[together : together + size], classes[:size], places[together : together + size], 2 * size)


def test_a_mixture_keeps_what_its_target_says():
    clips = torch.stack([torch.zeros(3, 2, 40, 60), torch.ones(3, 2, 40, 60)])
    targets, places = torch.tensor([0, 1]), torch.tensor([0, 1])
    kinds = set()
    for pair in range(40):
        mixed, shares = PairMixer(0.4, 1.0, seed=0)(clips, targets, places + 2 * pair, 2)
        assert mixed[0].mean() == pytest.approx(shares[0, 1].item(), abs=1e-5)  # the other's share is what it sees
        assert torch.equal(mixed[0, 0, 0], mixed[0, 2, 1])  # the same in all frames
        kinds.add("cut" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "blend")
    assert kinds == {"cut", "blend"}
    shares = [PairMixer(0.4, 0.0, 0).draw(pair, 8, 8).kept for pair in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03) and np.var(shares) == pytest.approx(0.25 / 1.8, abs=0.01)


def test_several_labels_are_mixed_too():
    several = torch.tensor([[True, False, True], [False, False, True]])
    _, shares = PairMixer(1.0, 0.0, seed=0)(torch.rand(2, 3, 1, 4, 4), several, torch.tensor([6, 7]), 3)
    kept = PairMixer(1.0, 0.0, seed=0).draw(3, 4, 4).kept
    torch.testing.assert_close(shares[0], torch.tensor([kept, 0.0, 1.0]), rtol=1e-5, atol=1e-6)


def test_mixtures_draw_other_numbers_than_samples():
    from nlvideo.data.clips.sampling import sample_rng

    for copy in range(3):
        sample = sample_rng(3, 5, 0, 0, copy).random(4)
        drawn = np.random.default_rng(np.random.SeedSequence([3, 5], spawn_key=STREAM)).random(4)
        assert not np.array_equal(sample, drawn)
