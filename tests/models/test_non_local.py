import pytest
import torch
import torch.nn.functional as F

from nlvideo.models.non_local import EXTENTS, MODES, NonLocalBlock

N, C, T, H, W = 2, 6, 3, 4, 4


def block_of(**options) -> NonLocalBlock:
    return NonLocalBlock(C, **options).double()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("norm", [True, False])
def test_a_new_block_is_the_identity(mode, extent, norm):
    x = torch.randn(N, C, T, H, W, dtype=torch.float64)
    assert torch.equal(block_of(mode=mode, extent=extent, norm=norm)(x), x)


def reference(block: NonLocalBlock, x: torch.Tensor, pool: str) -> torch.Tensor:
    """The block position by position, from its parameters and the text of Sec. 3."""
    subsample = block.extent != "time"
    pooled = (lambda t: F.max_pool3d(t, (1, 2, 2))) if subsample else (lambda t: t)
    if pool == "before":
        g = block.g(pooled(x))
        phi = pooled(x) if block.mode == "gaussian" else block.phi(pooled(x))
    else:
        g = pooled(block.g(x))
        phi = pooled(x if block.mode == "gaussian" else block.phi(x))
    theta = x if block.mode == "gaussian" else block.theta(x)
    y = torch.zeros(N, g.shape[1], T, H, W, dtype=x.dtype)
    for n in range(N):
        for t in range(T):
            for h in range(H):
                for w in range(W):
                    if block.extent == "spacetime":
                        keys, values = phi[n].flatten(1), g[n].flatten(1)
                    elif block.extent == "space":
                        keys, values = phi[n, :, t].flatten(1), g[n, :, t].flatten(1)
                    else:
                        keys, values = phi[n, :, :, h, w], g[n, :, :, h, w]
                    query = theta[n, :, t, h, w]
                    if block.mode == "concatenation":
                        pairs = torch.cat([query[:, None].expand(-1, keys.shape[1]), keys])
                        f = F.relu(block.w_f.weight.flatten() @ pairs) / keys.shape[1]
                    elif block.mode == "dot_product":
                        f = query @ keys / keys.shape[1]
                    else:
                        f = (query @ keys * block.logit_scale).softmax(0)
                    y[n, :, t, h, w] = values @ f
    return x + block.bn(block.out(y))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("pool", ["after", "before"])
def test_block_equals_the_paper_position_by_position(mode, extent, pool):
    block = block_of(mode=mode, extent=extent, pool=pool).eval()
    torch.nn.init.normal_(block.bn.weight)
    x = torch.randn(N, C, T, H, W, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x, pool), rtol=1e-9, atol=1e-10)


def test_scale_multiplies_the_logits_by_the_inner_width():
    block = block_of(scale=True).eval()
    assert block.logit_scale == pytest.approx(3**-0.5)
    torch.nn.init.normal_(block.bn.weight)
    x = torch.randn(N, C, T, H, W, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x, "before"), rtol=1e-9, atol=1e-10)


def test_subsampling_can_be_left_out():
    block = block_of(mode="dot_product", subsample=False).eval()
    torch.nn.init.normal_(block.bn.weight)
    x = torch.randn(1, C, 1, 3, 3, dtype=torch.float64)
    theta, phi, g = (conv(x).flatten(2)[0] for conv in (block.theta, block.phi, block.g))  # (D, 9)
    y = (g @ (phi.T @ theta) / 9).view(1, -1, 1, 3, 3)
    torch.testing.assert_close(block(x), x + block.bn(block.out(y)))


@pytest.mark.parametrize("norm", [True, False])
def test_only_the_zeroed_part_learns_at_the_first_step(norm):
    block = block_of(norm=norm)
    block(torch.randn(N, C, T, H, W, dtype=torch.float64)).square().sum().backward()
    moving = {name for name, p in block.named_parameters() if p.grad.any()}
    assert moving == ({"bn.weight", "bn.bias"} if norm else {"out.weight", "out.bias"})


@pytest.mark.parametrize("mode", MODES)
def test_without_bias_the_block_is_the_weight_matrices_of_the_text(mode):
    block = block_of(mode=mode, bias=False).eval()
    assert {name for name, _ in block.named_parameters() if name.endswith("bias")} == {"bn.bias"}
    torch.nn.init.normal_(block.bn.weight)
    x = torch.randn(N, C, T, H, W, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x, "before"), rtol=1e-9, atol=1e-10)


def test_initialisations_differ_in_spread():
    paper, released = NonLocalBlock(512, init="paper"), NonLocalBlock(512, init="released")
    assert paper.theta.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert released.theta.weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "softmax"},
        {"extent": "everywhere"},
        {"pool": "never"},
        {"init": "ones"},
        {"mode": "gaussian", "scale": True},
    ],
)
def test_wrong_options_are_refused_with_their_value(options):
    with pytest.raises(ValueError, match=str(list(options.values())[0])):
        NonLocalBlock(C, **options)


def test_a_map_too_small_to_subsample_is_refused():
    with pytest.raises(ValueError, match="1x4 feature map"):
        block_of()(torch.randn(N, C, T, 1, 4, dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("pool", ["after", "before"])
def test_every_mode_trains_under_bfloat16_autocast(mode, extent, pool):
    block = NonLocalBlock(8, mode=mode, extent=extent, pool=pool)
    x = torch.randn(2, 8, 3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(torch.nn.functional.conv3d(x, torch.randn(8, 8, 1, 1, 1)))
    y.float().square().sum().backward()
    assert torch.isfinite(x.grad).all() and block.bn.weight.grad.any()
