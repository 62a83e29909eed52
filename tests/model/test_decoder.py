"""The model as a whole: initialisation, tied weights, softcap, casts, statistics, and what wrong input is told."""

import math

import pytest
import torch

from hybridlm.lm.mixers import MIXERS, Mixed
from hybridlm.lm.mixers.attention.attention import Attention
from hybridlm.tests.model.helpers import build, tokens
from hybridlm.tests.oracles import assert_close


@pytest.mark.parametrize(
    ("options", "std"), [({}, 0.04), ({"d_model": 1024}, 0.02 / math.sqrt(2)), ({"init_std": 0.1}, 0.1)]
)
def test_initial_spread(options, std):
    model = build(**{"d_model": 128, "n_layers": 2, "vocab_size": 300, **options})
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert parameter.std().item() == pytest.approx(std / 2, rel=0.05), name  # 1 / sqrt(2 n_layers)
        elif name.endswith(("proj.weight", "embed.weight", "lm_head.weight")):
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_initial_loss_is_that_of_a_uniform_guess():
    model, ids = build(vocab_size=300, d_model=64), tokens(4, 100, vocab=300)
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(300), abs=0.3)


def test_gated_deltanet_starts_with_its_paper_s_decays():
    for mixer in build(seed=3, d_model=512, pattern=["gated_deltanet"]).mixers():
        A, dt = mixer.A_log.exp(), torch.nn.functional.softplus(mixer.dt_bias)
        assert (A > 0).all() and (A <= 16).all() and A.std() > 1
        assert (dt >= 0.99e-4).all() and (dt <= 0.101).all()


def test_tied_embeddings_are_one_tensor():
    tied, untied = build(), build(tie_embeddings=False)
    assert tied.lm_head.weight is tied.embed.weight
    assert untied.lm_head.weight is not untied.embed.weight
    extra = {id(p): p.numel() for p in untied.parameters()}
    assert sum(extra.values()) - sum(p.numel() for p in tied.parameters()) == 61 * 32
    assert tied.bfloat16().lm_head.weight is tied.embed.weight


def test_softcap_bounds_the_logits():
    ids = tokens(1, 20)
    plain, capped = build(init_std=0.5), build(init_std=0.5, logit_softcap=2.0)
    expected = 2 * torch.tanh(plain(ids).logits / 2)
    assert_close(capped(ids).logits, expected, 1e-5)
    assert plain(ids).logits.abs().amax() > 2


def test_same_seed_same_model():
    one, two = build(seed=5), build(seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_state_dict_round_trip():
    one, two = build(seed=1), build(seed=2)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(tokens(1, 9)).logits, two(tokens(1, 9)).logits)


def test_a_cast_model_can_be_cast_back_and_forth():
    model = build(pattern=["gated_deltanet"])
    decays = [mixer.A_log.clone() for mixer in model.mixers()]
    model.bfloat16().float().half().double()
    for mixer, old in zip(model.mixers(), decays, strict=True):
        assert_close(mixer.A_log, old, 1e-7)
        assert mixer.A_log.dtype == torch.float64


def test_decays_and_write_strengths_are_exact_in_a_bfloat16_model():
    model = build(pattern=["gated_deltanet"], gated_deltanet={"allow_negative_eigenvalues": True}).bfloat16()
    mixer = next(model.mixers())
    x = torch.randn(2, 50, 32, dtype=torch.bfloat16)
    a, b = mixer.ab_proj(x).double().chunk(2, -1)
    g, beta = mixer._gates(x)
    rate = torch.nn.functional.softplus(a + mixer.dt_bias.double())
    assert g.dtype == beta.dtype == torch.float32
    assert_close(g, -mixer.A_log.double().exp() * rate, 1e-6)
    assert_close(beta, 2 * b.sigmoid(), 1e-6)


@pytest.mark.parametrize("n_v_heads", [2, 4, 6])
def test_shared_key_heads_count_their_flops(n_v_heads):
    from torch.utils.flop_counter import FlopCounterMode

    delta = {"n_heads": 2, "n_v_heads": n_v_heads, "head_dim": 6, "v_head_dim": 10}
    model = build(pattern=["gated_deltanet"], gated_deltanet=delta)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens(2, 128))
    assert counter.get_total_flops() == pytest.approx(2 * 128 * model.flops_per_token(128), rel=1e-12)


def test_a_window_counts_as_many_keys_for_each_query_and_no_more_than_there_are():
    def flops(window: int | None) -> float:
        return build(pattern=["attention"], attention={"window": window}).flops_per_token(128)

    mixers = list(build(pattern=["attention"]).mixers())
    per_key = 4 * sum(mixer.n_heads * mixer.head_dim for mixer in mixers)
    assert flops(64) - flops(32) == 32 * per_key
    assert flops(127) == flops(128) - per_key and flops(128) == flops(500) == flops(None)


class Talkative(Attention):
    """Attention that reports a loss and a statistic."""

    def forward(self, x, sequences, state=None) -> Mixed:
        mixed = super().forward(x, sequences, state)
        return mixed._replace(losses={"chatter": 0.25 * (self.index + 1) + 0 * x.sum()}, stats={"n": torch.ones(3)})


def test_losses_of_mixers_are_summed_by_name_and_added(monkeypatch):
    ids = tokens(2, 20)
    expected = build(pattern=["attention"])(ids, labels=ids).loss
    monkeypatch.setitem(MIXERS, "attention", Talkative)
    for logits in (True, False):
        output = build(pattern=["attention"])(ids, labels=ids, logits=logits)
        assert output.aux_losses["chatter"].item() == pytest.approx(0.75)
        assert_close(output.loss, expected + 0.75, 1e-6)
        assert {i: stats["n"].tolist() for i, stats in output.stats.items()} == {0: [1.0] * 3, 1: [1.0] * 3}


@pytest.mark.parametrize(
    ("ids", "how", "message"),
    [
        (
            tokens(2, 6),
            {"cu_seqlens": torch.tensor([0, 6])},
            "cu_seqlens packs documents along T, so B must be 1, not 2; reshape to [1, B*T, ...]",
        ),
        (
            tokens(1, 6),
            {"cu_seqlens": torch.tensor([0, 5])},
            "cu_seqlens is [0, 5] of shape [2]; allowed: offsets that start at 0, never decrease and end at T=6",
        ),
        (
            tokens(1, 6),
            {"cu_seqlens": torch.tensor([0, 4, 3, 6])},
            "cu_seqlens is [0, 4, 3, 6] of shape [4]; allowed: offsets that start at 0, never decrease and end at T=6",
        ),
        (
            tokens(2, 6),
            {"attention_mask": torch.zeros(2, 5)},
            "attention_mask: shape (2, 5), expected (2, 6)",
        ),
        (
            tokens(1, 3),
            {"attention_mask": torch.tensor([[-1e9, 0, 0]])},
            "attention_mask: holds -1000000000.0; allowed: 1 at a token, 0 at padding; masks that are added to scores "
            "are none, and documents in one row are cu_seqlens",
        ),
        (
            tokens(1, 3),
            {"attention_mask": torch.tensor([[1, 1, 2]])},
            "attention_mask: holds 2; allowed: 1 at a token, 0 at padding; masks that are added to scores are none, "
            "and documents in one row are cu_seqlens",
        ),
        (
            tokens(1, 6),
            {"attention_mask": torch.zeros(1, 6), "cu_seqlens": torch.tensor([0, 6])},
            "attention_mask: cannot be combined with cu_seqlens; packed documents have no padding",
        ),
    ],
)
def test_errors_say_what_is_wrong(ids, how, message):
    with pytest.raises(ValueError) as error:
        build()(ids, **how)
    assert str(error.value) == message


def test_a_full_mask_of_the_wrong_shape_is_noticed():
    with pytest.raises(ValueError, match=r"attention_mask: shape \(2, 5\), expected \(2, 6\)"):
        build()(tokens(2, 6), attention_mask=torch.ones(2, 5))


def test_padding_has_zero_logits_and_an_empty_row_is_allowed():
    mask = torch.tensor([[0, 1, 1], [0, 0, 0]])
    output = build()(tokens(2, 3), labels=tokens(2, 3), attention_mask=mask, cache=True)
    assert not output.logits[mask == 0].any()
    assert output.logits[mask == 1].any() and output.loss.isfinite()
    assert output.cache.lengths == [2, 0]
