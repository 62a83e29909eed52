"""Contract 12: init_weights initialises everything, so that a model may be made without memory and filled later."""

import pytest
import torch

from hybridlm.lm import HybridLM, Recipe
from hybridlm.tests.contracts import broken
from hybridlm.tests.contracts.harness import Build, Builder, scores, tokens

BEFORE = {  # sums of absolute values
    "embed.weight": 23673.728842465316,
    "blocks.0.mixer.conv": 764.7870522737503,
    "blocks.0.mixer.A_log": 7.226860731840134,
    "blocks.0.mixer.dt_bias": 21.900585174560547,
    "blocks.2.ffn.down_proj.weight": 1437.2367032436662,
    "blocks.3.mixer.qkv_proj.weight": 4422.224564021881,
}


def check_initialisation(build: Build) -> None:
    """On the meta device, emptied, filled with NaN, initialised: bit for bit the model that its seed makes."""
    config = build().config
    torch.manual_seed(7)
    expected = HybridLM(config)
    with torch.device("meta"):
        model = HybridLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)
    torch.manual_seed(7)
    model.init_weights()
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    wanted = {**dict(expected.named_parameters()), **dict(expected.named_buffers())}
    assert found.keys() == wanted.keys()  # a tied head is no parameter of its own
    different = [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)]
    assert not different, f"init_weights leaves {different}"


def test_contract(build):
    check_initialisation(build)


def test_broken_mixer_fails(register):
    with pytest.raises(AssertionError):
        check_initialisation(register(broken.CountsItsModels))


def tied(name: str = "attention") -> HybridLM:
    config = Builder((name,))().config
    return HybridLM(config.model_copy(update={"tie_embeddings": True}))


def test_tied_embeddings_stay_one_parameter():
    with torch.device("meta"):
        model = tied()
    model.to_empty(device="cpu")
    model.init_weights()
    assert model.lm_head.weight is model.embed.weight


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_tied(assign):
    source = tied()
    with torch.device("meta"):
        model = tied()
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict(), assign=assign)
    assert model.lm_head.weight is model.embed.weight
    assert torch.equal(scores(model, tokens(2, 5)), scores(source, tokens(2, 5)))


def test_a_seed_and_the_options_of_a_model_make_its_weights_alone():
    torch.manual_seed(3)
    once = tied().state_dict()
    torch.manual_seed(3)
    again = tied().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in once.items())


def test_a_seed_gives_the_weights_that_it_gave_before():
    """Of the demo's four layers, made with the seed 0 by the code of November 2026."""
    torch.manual_seed(0)
    weights = HybridLM(Recipe.load("demo").model).state_dict()
    sums = {name: float(weights[name].double().abs().sum()) for name in BEFORE}
    assert sums == pytest.approx(BEFORE, rel=1e-6)


def test_an_adapter_is_not_taken_for_a_part_of_the_model():
    model = tied()
    model.blocks[0].mixer.o_proj.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"init_weights: blocks.0.mixer.o_proj.adapter.weight is of no new model"):
        model.init_weights()
