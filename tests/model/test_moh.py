"""Mixture-of-Head attention (arXiv 2410.11842): which heads are used, with what weight, and what that changes."""

import pytest
import torch
from torch import Tensor

from hybridlm.lm.mixers.attention.attention import Attention
from hybridlm.tests.model.helpers import build, small, tokens
from hybridlm.tests.model.routed import (
    D_MODEL,
    HEAD_DIM,
    N_HEADS,
    documents,
    gates,
    inputs,
    largest,
    layer,
    learned_gates,
    query_norm_probabilities,
    route,
    rows,
)
from hybridlm.tests.oracles import assert_close

LEARNED = {"shared": 3, "active": 5}
BY_NORM = {"router": "query_norm", "shared": 2, "active": 5}
ROUTERS = {
    "learned": LEARNED,
    "learned, none shared": {"shared": 0, "active": 3},
    "learned, one shared": {"shared": 1, "active": 4},
    "learned, named": {"shared_heads": [6, 1, 3], "active": 5},
    "learned, groups": {"route": "groups", "shared": 2, "active": 6},
    "norm": BY_NORM,
    "norm, none shared": {"router": "query_norm", "shared": 0, "active": 3},
    "norm, named": {"router": "query_norm", "shared_heads": [7, 2], "active": 4},
    "norm, groups": {"router": "query_norm", "route": "groups", "shared": 2, "active": 6},
}
routers = pytest.mark.parametrize("heads", ROUTERS.values(), ids=ROUTERS)


def queries(mixer: Attention, x: Tensor) -> Tensor:
    """[B, T, H, D], before RoPE."""
    return mixer.projection(mixer, x).q.unflatten(-1, (N_HEADS, HEAD_DIM))


# the equations


@routers
def test_the_output_is_the_sum_over_heads_of_their_attention_by_their_gates(heads):
    mixer, x = layer(heads, n_kv_heads=4), inputs()
    g = gates(mixer, x)
    q, k, v = mixer._placed(mixer.projection(mixer, x), rows(x))
    W = mixer.o_proj.weight.unflatten(1, (N_HEADS, HEAD_DIM))
    expected = torch.zeros_like(x)
    for i in range(N_HEADS):
        scores = torch.einsum("btd,bsd->bts", q[:, :, i], k[:, :, i // 2]) / HEAD_DIM**0.5
        seen = torch.ones_like(scores, dtype=torch.bool).tril()
        o = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, :, i // 2]
        expected += g[:, :, i, None] * o @ W[:, i].T
    assert_close(mixer(x, rows(x)).y, expected, 1e-12)


def test_learned_gates_are_those_of_the_published_code():
    mixer, x = layer(LEARNED), inputs()
    W_h, W_s, W_r = mixer.router.detach().split([2, 3, 5])
    for row, found in zip(x, gates(mixer, x), strict=True):
        assert_close(found, learned_gates(row, W_h, W_s, W_r, K=2), 1e-12)


def test_gates_by_the_norm_of_queries_are_those_of_the_published_code():
    mixer, x = layer(BY_NORM), inputs()
    for q, found in zip(queries(mixer, x).detach(), gates(mixer, x), strict=True):
        p = query_norm_probabilities(q, [2, 3, 4, 5, 6, 7])
        chosen = torch.zeros(len(p), 6, dtype=torch.float64)
        for t, values in enumerate(p.tolist()):
            chosen[t, largest(values, 3)] = 1
        assert torch.equal(found, torch.cat((torch.ones(len(p), 2), chosen), 1))


def test_groups_are_used_together_by_their_mean_norm_or_their_own_logit():
    x = inputs()
    mixer = layer(ROUTERS["norm, groups"], n_kv_heads=4)
    mean = queries(mixer, x).norm(dim=-1)[..., 2:].unflatten(-1, (3, 2)).mean(-1)
    least = mean.argmin(-1)
    found = gates(mixer, x).unflatten(-1, (4, 2))
    assert torch.equal(found[..., 0], found[..., 1])
    assert torch.equal(found[..., 1:, 0] == 0, torch.nn.functional.one_hot(least, 3).bool())
    mixer = layer(ROUTERS["learned, groups"], n_kv_heads=4)
    assert mixer.router.shape == (2 + 2 + 3, D_MODEL)
    W_h, W_s, W_r = mixer.router.detach().split([2, 2, 3])
    expected = learned_gates(x[0], W_h, W_s, W_r, K=2)
    assert_close(gates(mixer, x)[0], expected[:, [0, 1, 2, 2, 3, 3, 4, 4]], 1e-12)


@routers
def test_every_token_uses_as_many_heads_as_are_active_and_always_the_shared_ones(heads):
    mixer = layer(heads, n_kv_heads=4)
    g, own = gates(mixer, inputs(3, 50)), mixer.options.heads
    assert ((g != 0).sum(-1) == own.active).all()
    assert (g[..., own.shared_heads] != 0).all()
    if own.router == "query_norm":
        assert set(g.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("shared", "active"), [(3, 5), (2, 8), (7, 8), (1, 4)])
def test_gates_sum_to_the_active_heads_each_stage_by_its_weight(shared, active):
    """Paper against code: printed, they would sum to at most 1 and shrink the output by the number of heads."""
    mixer, x = layer({"shared": shared, "active": active}), inputs()
    a = 2 * (x @ mixer.router[:2].T).softmax(-1)
    expected = shared * a[..., 0] + (active - shared) * a[..., 1]
    assert_close(gates(mixer, x).sum(-1), expected, 1e-12)


def test_without_shared_heads_or_without_routed_ones_there_is_one_stage():
    x = inputs()
    mixer = layer({"shared": 0, "active": 3})
    assert mixer.router.shape == (8, D_MODEL)
    assert_close(gates(mixer, x).sum(-1), torch.full((2, 13), 3.0).double(), 1e-12)
    mixer = layer({"shared": 8, "active": 8})
    assert mixer.router.shape == (8, D_MODEL)
    assert_close(gates(mixer, x), 8 * (x @ mixer.router.T).softmax(-1), 1e-12)
    assert route(mixer, x).losses == {}


def test_one_shared_head_has_the_weight_of_its_stage_and_no_matrix_of_its_own():
    """The published DiT code asks for a matrix that it does not make."""
    mixer, x = layer({"shared": 1, "active": 3}), inputs()
    assert mixer.router.shape == (2 + 7, D_MODEL)
    assert_close(gates(mixer, x)[..., 0], 2 * (x @ mixer.router[:2].T).softmax(-1)[..., 0], 1e-12)


def test_shared_and_routed_heads_need_not_be_equally_many():
    """The published LLaMA code is right only where they are: one mask is as wide as the other."""
    for shared in range(8):
        mixer = layer({"router": "query_norm", "shared": shared, "active": shared + 1})
        assert (gates(mixer, inputs()).sum(-1) == shared + 1).all()


# a new layer


@pytest.mark.parametrize("active", range(4, 9))
def test_gates_of_a_new_layer_are_exactly_one_where_a_head_is_used(active):
    model = build(pattern=["moh"], moh={"n_heads": 8, "head_dim": 4, "heads": {"shared": 3, "active": active}})
    for mixer in model.mixers():
        assert mixer.router.count_nonzero() == 0
        g = gates(mixer, inputs(dtype=torch.float32))
        assert torch.equal(g, (torch.arange(8) < active).float().expand_as(g))  # equal ranks: the first


def test_a_new_layer_whose_heads_are_all_active_is_attention():
    sizes = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 4, "window": 7}
    plain = build(pattern=["attention"], attention=sizes)
    routed = build(pattern=["attention"], attention={**sizes, "heads": {"shared": 3, "active": 8}})
    routed.load_state_dict({**routed.state_dict(), **plain.state_dict()})
    ids = tokens(2, 30)
    assert torch.equal(routed(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_binary_gates_of_all_heads_change_no_bit_with_and_without_a_cache(dtype):
    sizes = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 4}
    plain = build(pattern=["attention"], attention=sizes).to(dtype)
    heads = {"router": "query_norm", "shared": 2, "active": 8}
    routed = build(pattern=["attention"], attention={**sizes, "heads": heads}).to(dtype)
    routed.load_state_dict(plain.state_dict())
    ids = tokens(2, 30)
    with torch.no_grad():
        one, other = (model(ids[:, :20], cache=True) for model in (plain, routed))
        assert torch.equal(one.logits, other.logits)
        for piece in (ids[:, 20:21], ids[:, 21:30]):
            assert torch.equal(plain(piece, cache=one.cache).logits, routed(piece, cache=other.cache).logits)


# what the choice depends on


def test_the_choice_by_norm_is_blind_to_scale_and_to_rotation():
    mixer, x = layer(BY_NORM, torch.float32), inputs(2, 200, torch.float32)
    before = gates(mixer, x)
    projected = mixer.projection(mixer, x)
    scaled = mixer.heads(mixer, x, 1.7 * projected.q, rows(x)).gate
    rotated = mixer.heads(mixer, x, mixer._placed(projected, rows(x))[0].flatten(2), rows(x)).gate
    assert torch.equal(scaled.weight, before) and torch.equal(rotated.weight, before)


def test_the_choice_by_norm_is_made_before_the_queries_are_normed():
    """After it all heads have one norm, and nothing is left to choose by."""
    x = inputs()
    plain = layer(BY_NORM)
    normed = layer(BY_NORM, qk_norm="head")
    normed.load_state_dict({**normed.state_dict(), **plain.state_dict()})
    assert torch.equal(gates(normed, x), gates(plain, x))


def test_permuted_heads_permute_the_gates_and_leave_the_output():
    order = [0, 1, *(2 + torch.randperm(6, generator=torch.Generator().manual_seed(3))).tolist()]
    for heads in (BY_NORM, {"shared": 2, "active": 5}):
        mixer, x = layer(heads), inputs()
        moved = layer(heads)
        channels = torch.arange(N_HEADS * HEAD_DIM).view(N_HEADS, HEAD_DIM)[order].flatten()
        with torch.no_grad():
            moved.qkv_proj.weight.copy_(torch.cat([w[channels] for w in mixer.qkv_proj.weight.chunk(3)]))
            moved.o_proj.weight.copy_(mixer.o_proj.weight[:, channels])
            if hasattr(mixer, "router"):
                moved.router.copy_(mixer.router[[0, 1, *(2 + i for i in order)]])
        assert_close(gates(moved, x), gates(mixer, x)[..., order], 1e-12)
        assert_close(moved(x, rows(x)).y, mixer(x, rows(x)).y, 1e-12)


@pytest.mark.parametrize("heads", [{**BY_NORM, "shared": 0}, {"shared": 0, "active": 5}])
def test_equal_ranks_go_to_the_first_heads(heads):
    mixer, x = layer(heads, torch.bfloat16), inputs(2, 40, torch.bfloat16)
    with torch.no_grad():
        mixer.qkv_proj.weight[:32] = mixer.qkv_proj.weight[:4].repeat(8, 1)
        if hasattr(mixer, "router"):
            mixer.router.copy_(mixer.router[:1].expand(8, -1))
    assert torch.equal(gates(mixer, x) != 0, (torch.arange(8) < 5).expand(2, 40, 8))


@routers
def test_a_gate_depends_on_its_own_token_alone(heads):
    mixer, x = layer(heads, n_kv_heads=4), inputs()
    changed = x.clone()
    changed[0, 7:] += 1
    changed[1] -= 1
    assert torch.equal(gates(mixer, changed)[0, :7], gates(mixer, x)[0, :7])
    packed = x.flatten(0, 1)[None]
    assert_close(gates(mixer, packed, documents([5, 0, 21]))[0], gates(mixer, x).flatten(0, 1), 1e-12)


def test_keys_and_values_of_a_head_are_needed_where_its_query_is_not():
    mixer, x = layer(BY_NORM), inputs()
    q, k, v = mixer._placed(mixer.projection(mixer, x), rows(x))
    gate = route(mixer, x).gate
    used = gate.weight[..., None] != 0

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mixer.visible.attend(q, k, v, gate, rows(x), 0.0)

    assert torch.equal(attend(q.masked_fill(~used, 7.0), k, v), attend(q, k, v))
    assert (attend(q, k * used, v * used) - attend(q, k, v)).abs().amax() > 0.1


# straight through


@pytest.mark.parametrize("how", ["selected", "dense"])
def test_gates_are_the_same_bits_however_gradients_go(how):
    x = inputs(2, 50, torch.float32)
    found = gates(layer({**BY_NORM, "straight_through": how}, torch.float32), x)
    with torch.no_grad():
        mask = gates(layer(BY_NORM, torch.float32), x)
    assert torch.equal(found, mask) and set(mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("how", ["selected", "dense"])
def test_the_gradient_of_a_gate_is_that_of_its_probability(how):
    """dL/dp_i = <dL/dy, o_i W_o^i>, for the routed heads in use or for all of them (eq. 10)."""
    mixer, x = layer({**BY_NORM, "straight_through": how}), inputs()
    caught: list[Tensor] = []
    choose = mixer.heads.choose

    def catch(scores: Tensor, p: Tensor) -> Tensor:
        p.retain_grad()
        caught.append(p)
        return choose(scores, p)

    mixer.heads.choose = catch
    dy = inputs(seed=9)
    mixed = mixer(x, rows(x))
    (mixed.y * dy).sum().backward()
    q, k, v = mixer._placed(mixer.projection(mixer, x), rows(x))
    full = torch.nn.functional.scaled_dot_product_attention(
        *(y.transpose(1, 2) for y in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    W = mixer.o_proj.weight.unflatten(1, (N_HEADS, HEAD_DIM))
    expected = torch.einsum("btd,bthc,dhc->bth", dy, full, W)[..., 2:]
    if how == "selected":
        expected = expected * gates(mixer, x)[..., 2:]
    assert_close(caught[0].grad, expected, 1e-10)


@pytest.mark.parametrize("normalise", ["std", "none"])
def test_gradients_of_the_norms_softmax_are_right(normalise):
    mixer = layer({**BY_NORM, "normalise": normalise})

    def p(q: Tensor) -> Tensor:
        return mixer.heads.normalised(torch.linalg.vector_norm(q, dim=-1)).softmax(-1)

    q = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(p, (q,))
    expected = query_norm_probabilities(q.detach().flatten(0, 1), list(range(6)), normalise == "std")
    assert_close(p(q).flatten(0, 1), expected, 1e-12)


def test_the_learned_router_learns_from_the_loss_without_the_balance_too():
    mixer, x = layer(LEARNED), inputs()
    mixer(x, rows(x)).y.square().sum().backward()
    assert (mixer.router.grad.abs().sum(1) > 0).all()


# edges


@pytest.mark.parametrize(
    "heads",
    [
        {"router": "query_norm", "shared": 7, "active": 8},
        {"router": "query_norm", "shared": 0, "active": 3},
        {"router": "query_norm", "shared": 6, "active": 7, "straight_through": "dense"},
        {"router": "query_norm", "shared": 8, "active": 8},
        {"shared": 0, "active": 1},
        {"shared": 8, "active": 8},
        {"shared": 7, "active": 8},
    ],
)
@pytest.mark.parametrize("queries", ["random", "zero", "equal"])
def test_equal_norms_no_query_and_one_or_no_routed_head_stay_finite(heads, queries):
    """The published code divides by the standard deviation of the norms, which then is 0 or none."""
    mixer, x = layer(heads, torch.float32), inputs(2, 9, torch.float32)
    with torch.no_grad():
        W = mixer.qkv_proj.weight
        W[:32] = {"random": W[:32], "zero": torch.zeros_like(W[:32]), "equal": W[:4].repeat(8, 1)}[queries]
    mixed = mixer(x, rows(x))
    (mixed.y.square().sum() + sum(mixed.losses.values())).backward()
    for tensor in (mixed.y, *mixed.losses.values(), *(p.grad for p in mixer.parameters() if p.grad is not None)):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("heads", [LEARNED, BY_NORM])
def test_a_call_of_one_token_or_none_has_no_balance(heads):
    mixer = layer(heads)
    for T in (0, 1):
        x = inputs(2, T)
        mixed = mixer(x, rows(x))
        assert mixed.y.shape == x.shape and mixed.losses == {} and mixed.stats == {}


@pytest.mark.parametrize(("heads", "flips"), [(LEARNED, 0.05), (BY_NORM, 0.14)])
def test_the_router_stays_float32_unless_it_is_to_round_as_the_model_does(heads, flips):
    """In bfloat16 it chooses other heads for some tokens."""
    x = inputs(4, 500, torch.bfloat16)
    exact, rounded = (layer({**heads, "router_dtype": kind}, torch.bfloat16) for kind in ("float32", "model"))
    rounded.load_state_dict(exact.state_dict())
    if hasattr(exact, "router"):
        assert (exact.router.dtype, rounded.router.dtype) == (torch.float32, torch.bfloat16)
        rounded.router.data = exact.router.data.bfloat16()
        exact.router.data = rounded.router.data.float()
    differ = ((gates(exact, x) != 0) != (gates(rounded, x) != 0)).any(-1).float().mean()
    assert 0 < differ < flips
    again = exact.float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = gates(again, x.float())
    assert logits.dtype == torch.float32


# what it costs


@pytest.mark.parametrize(("active", "expected"), [(8, 1.0), (6, 0.780), (4, 0.560)])
def test_three_quarters_of_the_heads_are_not_three_quarters_of_the_flops(active, expected):
    """LLaMA-3-8B's shape in an eighth: what may be left out are scores, not projections of keys and values."""
    sizes = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 4}
    config = small(d_model=32, n_layers=1, pattern=["attention"], attention={**sizes, "heads": {"active": active}})
    plain = small(d_model=32, n_layers=1, pattern=["attention"], attention=sizes)
    routed, dense = (Attention(c.layer_specs()[0].options, c.shape, 0) for c in (config, plain))
    for n in (64, 512, 4096):
        d, h, G, c = 32, 8, 2, 4
        projections, scores, router = 2 * d * h * c + 4 * d * G * c + 2 * h * c * d, 4 * n * h * c, 2 * d * (h + 2)
        assert dense.flops_per_token(n) == projections + scores
        assert routed.flops_per_token(n) == projections + active / h * scores + router
    assert routed.flops_per_token(1 << 20) / dense.flops_per_token(1 << 20) == pytest.approx(active / 8, rel=1e-3)


def test_routing_by_norm_costs_no_product():
    sizes = {"n_heads": 8, "head_dim": 4}
    one, other = (layer(heads, **sizes) for heads in (None, {"router": "query_norm", "active": 6}))
    assert one.flops_per_token(64) - other.flops_per_token(64) == 4 * 64 * 2 * 4
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in other.parameters())
