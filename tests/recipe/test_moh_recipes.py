"""The recipes of Mixture-of-Head models: sizes are those that the paper prints (arXiv 2410.11842, tables B and C)."""

import pytest
import torch

from hybridlm.lm import HybridLM, Recipe


@pytest.mark.parametrize(
    ("name", "million", "heads", "tokens"),
    [
        ("moh/llm-s", 186, (3, 9), 100e9),
        ("moh/llm-b", 882, (4, 12), 100e9),
        ("moh/llama3-8b", 8030, (16, 24), 100e9),
    ],
)
def test_published_models(name, million, heads, tokens):
    recipe = Recipe.load(name)
    assert recipe.description.startswith("not run: ")
    with torch.device("meta"):
        model = HybridLM(recipe.model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == million
    assert {(mixer.heads.shared, mixer.heads.active) for mixer in model.mixers()} == {heads}
    assert recipe.train.steps * recipe.train.batch * recipe.model.context == pytest.approx(tokens, rel=1e-4)
    decay = 0.05 if name == "moh/llama3-8b" else 0.1
    assert (recipe.optim.weight_decay, recipe.optim.clip, recipe.optim.schedule.final) == (0.1, 1.0, decay)


def test_small_models_differ_by_the_router_alone():
    sizes = {}
    for name, variant in Recipe.load("moh/mini").variants().items():
        with torch.device("meta"):
            model = HybridLM(Recipe.load("moh/mini", variant.overrides).model)
        sizes[name] = sum(p.numel() for p in model.parameters())
    routers = 4 * (2 + 2 + 6) * 256
    assert {sizes[f"{name}-s0"] - sizes["all-s0"] for name in ("six", "four")} == {routers}
    assert len(sizes) == 9
