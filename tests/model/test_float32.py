"""Parameters that stay float32: whoever makes, casts or loads the model, and with gradients."""

import pytest
import torch
from torch import nn

from hybridlm.lm import HybridLM
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.parts.float32 import Float32Module
from hybridlm.tests.model.helpers import build, small, tokens

CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double and to": lambda model: model.double().to(torch.bfloat16),
}


def exact(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{path}.{name}": module.get_parameter(name)
        for path, module in model.named_modules()
        if isinstance(module, Float32Module)
        for name in module.float32_parameters
    }


def hybrid() -> HybridLM:
    return build(pattern=list(MIXERS), n_layers=len(MIXERS))


@pytest.mark.parametrize("cast", CASTS)
def test_gradients_stay_float32_with_their_parameters(cast):
    model, ids = hybrid(), tokens(1, 9)
    model(ids, labels=ids).loss.backward()
    before = {name: p.grad.clone() for name, p in exact(model).items()}
    CASTS[cast](model)
    assert before and model.embed.weight.dtype in (torch.bfloat16, torch.float16)
    for name, p in exact(model).items():
        assert p.dtype == p.grad.dtype in (torch.float32, torch.float64), name
        assert torch.equal(p.grad.float(), before[name]), name
    torch.optim.AdamW(model.parameters()).step()


def test_a_model_made_in_bfloat16_has_them_too():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = HybridLM(small(pattern=list(MIXERS), n_layers=len(MIXERS)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.embed.weight.dtype == torch.bfloat16
    assert {p.dtype for p in exact(model).values()} == {torch.float32}
    assert torch.isfinite(model(tokens(1, 9)).logits).all()


def test_transformers_from_config_leaves_them():
    transformers = pytest.importorskip("transformers")
    from hybridlm.lm.hf.configuration import HybridLMConfig

    config = small(pattern=["gated_deltanet", "attention"])
    model = transformers.AutoModelForCausalLM.from_config(
        HybridLMConfig(model=config.model_dump(exclude_unset=True)), dtype=torch.bfloat16
    )
    assert model.model.embed.weight.dtype == torch.bfloat16
    assert {p.dtype for p in exact(model).values()} == {torch.float32}


def test_a_file_in_bfloat16_is_widened_where_it_is_taken_as_it_is():
    model = hybrid()
    rounded = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.load_state_dict(rounded, assign=True)
    assert model.embed.weight.dtype == torch.bfloat16
    assert {p.dtype for p in exact(model).values()} == {torch.float32}


def test_one_that_was_rounded_otherwise_is_refused_by_name():
    model = build(pattern=["gated_deltanet"])
    mixer = next(model.mixers())
    mixer.A_log.data = mixer.A_log.data.bfloat16()
    with pytest.raises(ValueError, match=r"GatedDeltaNet\.A_log is torch\.bfloat16; allowed: float32"):
        model(tokens(1, 3))
