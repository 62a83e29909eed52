"""Contract 10: bfloat16 stays near float32, and what must stay float32 does."""

import pytest
import torch
from torch import Tensor, nn

from hybridlm.lm import HybridLM
from hybridlm.lm.mixers import Mixer
from hybridlm.lm.parts.norm import RMSNorm
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import Build, gradients, scores, tokens, weights_like
from hybridlm.tests.oracles import assert_close

# Wider than an operator's 1e-2: embedding, norms, projections, FFN and head round too. Correct mixers measure 0.4 to
# 0.9 % in the logits and up to 2.5 % in a decay's gradient, one that rounds its decay 4 % and 12 %.
LOGITS, GRADIENTS = 2e-2, 4e-2
T = 400
CASTS = (
    HybridLM.bfloat16,
    HybridLM.half,
    lambda model: model.to(torch.bfloat16),
    lambda model: model.to("cpu", torch.half),
)


def check_autocast(build: Build) -> None:
    model = _rounded(build)
    _compare(*_run(model), *_run(model, autocast=True))


def check_cast_model(build: Build) -> None:
    model = _rounded(build)
    exact = _run(model)
    _compare(*exact, *_run(model.bfloat16()))


def _rounded(build: Build) -> HybridLM:
    """One layer whose weights are bfloat16 numbers already, so that only the arithmetic differs."""
    model = build(n_layers=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def _run(model: HybridLM, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(tokens(2, T)).logits
    (logits.float() * weights_like(logits.float())).sum().backward()
    return logits.detach(), gradients(model)


def _compare(logits: Tensor, exact: dict[str, Tensor], low: Tensor, rough: dict[str, Tensor]) -> None:
    assert_close(low, logits, LOGITS, "bfloat16 logits")
    assert rough.keys() == exact.keys()
    for name, gradient in exact.items():
        assert_close(rough[name], gradient, GRADIENTS, f"bfloat16 gradient of {name}")


@torch.no_grad()
def check_decoding(build: Build) -> None:
    """Prefill and single steps in bfloat16, cast or under autocast, stay near the parallel form in float32."""
    ids = tokens(2, 140)
    for autocast in (False, True):
        model = _rounded(build)
        exact = scores(model, ids)
        model = model if autocast else model.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(ids[:, :130], cache=True)
            steps = [scores(model, ids[:, t : t + 1], cache=output.cache) for t in range(130, 140)]
        assert_close(torch.cat((output.logits, *steps), 1), exact, LOGITS, f"bfloat16 decoding with {autocast=}")


def check_exact_parameters(build: Build) -> None:
    """Decays, rates and gates' biases survive every cast: what layers share and all vectors but norms and those that
    are added to plain projections.
    """
    for cast in CASTS:
        model, before = build(), build()
        cast(model)
        assert model.embed.weight.dtype != torch.float32
        for mixer, old in zip(_owners(model), _owners(before), strict=True):
            norms = {id(p) for module in mixer.modules() if isinstance(module, RMSNorm) for p in module.parameters()}
            exact = mixer.float32_parameters if isinstance(mixer, Mixer) else dict(mixer.named_parameters())
            for name, parameter in mixer.named_parameters():
                if name in ("qkv_proj.bias", "o_proj.bias"):
                    continue
                if name in exact or (parameter.ndim <= 1 and id(parameter) not in norms):
                    assert parameter.dtype == torch.float32, f"{type(mixer).__name__}.{name} became {parameter.dtype}"
                    assert torch.equal(parameter, old.get_parameter(name)), f"{name} was rounded on the way"


def _owners(model: HybridLM) -> list[nn.Module]:
    """The mixers, and the modules of gates that their layers share."""
    return [*model.mixers(), *model.shared.values()]


CHECKS = [check_autocast, check_cast_model, check_decoding, check_exact_parameters]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check, build):
    check(build)


@pytest.mark.parametrize(
    ("check", "mixer"),
    [
        (check_autocast, broken.DecaysInLowPrecision),
        (check_cast_model, broken.DecaysInLowPrecision),
        (check_decoding, broken.DecaysInLowPrecision),
        (check_exact_parameters, broken.RoundsItsDecay),
        (check_exact_parameters, broken.RoundsItsSharedRates),
    ],
)
def test_broken_mixer_fails(check, mixer, register):
    with pytest.raises(AssertionError):
        check(register(mixer))
