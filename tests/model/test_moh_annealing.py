"""The heads in use fall from all to `active` over the first part of training."""

import pytest
import torch

from hybridlm.tests.model.helpers import build, small, tokens

HEADS = {"router": "query_norm", "shared": 2, "active": 4, "anneal": 0.5}


def attention(**heads):
    options = {"n_heads": 8, "n_kv_heads": 4, "rope": None, "heads": {**HEADS, **heads}}
    return build(pattern=["attention"], attention=options)


def in_use(model, done: float | None) -> list[int]:
    """Heads that each layer uses for a token, the same for all."""
    stats = []
    for mixer in model.mixers():
        if done is not None:
            mixer.before_step(done)
        mixer.register_forward_hook(lambda _, __, mixed: stats.append(mixed.stats["routing"]))
    model.train()(tokens(2, 9))
    activation = [mixer.on_step({"routing": s})["activation"] for mixer, s in zip(model.mixers(), stats, strict=True)]
    return [round(sum(by_head), 6) for by_head in activation]


@pytest.mark.parametrize(("done", "heads"), [(0, 8), (0.125, 7), (0.25, 6), (0.4999, 4), (0.5, 4), (1, 4)])
@pytest.mark.parametrize("router", ["query_norm", "moh"])
def test_heads_in_use_fall_evenly_to_active(done, heads, router):
    assert in_use(attention(router=router), done) == [heads] * 2


def test_whole_groups_are_dropped():
    found = {done: in_use(attention(route="groups"), done)[0] for done in (0, 0.24, 0.26, 0.5)}
    assert found == {0: 8, 0.24: 6, 0.26: 6, 0.5: 4}


def test_who_is_told_nothing_uses_active():
    assert in_use(attention(), None) == [4, 4]
    assert in_use(attention(anneal=0.0), 0) == [4, 4]


def test_at_the_first_step_a_converted_model_is_the_dense_one():
    routed, ids = attention(), tokens(2, 9)
    dense = build(pattern=["attention"], attention={"n_heads": 8, "n_kv_heads": 4, "rope": None})
    dense.load_state_dict(routed.state_dict())
    for mixer in routed.mixers():
        mixer.before_step(0.0)
    assert torch.equal(routed(ids).logits, dense(ids).logits)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(ValueError, match="anneal"):
        small(pattern=["attention"], attention={"heads": {"anneal": share}})
