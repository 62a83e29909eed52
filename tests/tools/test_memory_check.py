"""A model that cannot be trained here is refused before anything is allocated."""

import pytest

from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tools import summary
from hybridlm.tools.summary import check_memory

GB = 10**9


@pytest.mark.parametrize(
    "overrides",
    [["model.d_model=1048576"], ["model.vocab_size=16777216", "model.d_model=65536"], ["train.micro_batch=1000000000"]],
    ids=["wide", "many words", "large batch"],
)
def test_what_the_machine_has_no_memory_for_is_one_line(overrides):
    with pytest.raises(ConfigError) as error:
        check_memory(Recipe.load("demo", overrides))
    said = str(error.value)
    assert said.startswith("memory: training needs about ") and "\n" not in said
    assert said.endswith(" GB; make the model, model.context or train.micro_batch smaller")


def test_the_bound_is_the_estimate_of_the_dry_run(monkeypatch):
    recipe = Recipe.load("demo", ["model.pattern=[attention]", "model.n_layers=1"])
    # embedding 4096 x 256, q k v o 4 x 256^2, FFN 3 x 256 x 704, three norms; 12 x 256 + 3 x 704 bfloat16 per token
    n = 4096 * 256 + 4 * 256**2 + 3 * 256 * 704 + 3 * 256
    needed = 16 * n + 2 * recipe.train.micro_batch * 512 * (12 * 256 + 3 * 704)
    monkeypatch.setattr(summary, "machine_bytes", lambda device: needed)
    check_memory(recipe)
    monkeypatch.setattr(summary, "machine_bytes", lambda device: needed - 1)
    with pytest.raises(ConfigError, match=f"needs about {needed / GB:,.1f} GB"):
        check_memory(recipe)


def test_heads_that_no_tensor_could_hold_are_refused_by_the_recipe():
    with pytest.raises(ConfigError, match="1048576 heads of 1024 channels are more than 16777216 channels; use fewer"):
        Recipe.load("demo", ["model.pattern=[attention]", "model.attention={n_heads: 1048576, head_dim: 1024}"])
