"""A model that cannot be trained here is refused before anything is allocated."""

import pytest

from hybridlm.lm import Recipe
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.tools import summary
from hybridlm.tools.summary import check_memory


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.d_model=1048576"],
        ["model.vocab_size=16777216", "model.d_model=65536"],
        ["train.batch=1000000000", "train.micro_batch=1000000000"],
    ],
    ids=["wide", "many words", "large batch"],
)
def test_what_the_machine_has_no_memory_for_is_one_line(overrides):
    with pytest.raises(ConfigError) as error:
        check_memory(Recipe.load("demo", overrides))
    said = str(error.value)
    assert said.startswith("memory: training needs at least ") and "\n" not in said
    assert said.endswith(" GB; make the model, model.context or train.micro_batch smaller")


@pytest.mark.parametrize(
    ("processes", "stage", "bytes_per_parameter"),
    [(1, 1, 16), (1, 3, 16), (4, 0, 16), (4, 1, 4 + 4 + 2), (4, 2, 4 + 1 + 2), (4, 3, 1 + 1 + 2)],
)
def test_the_bound_is_what_cannot_be_done_without(processes, stage, bytes_per_parameter, monkeypatch):
    given = ["model.pattern=[attention]", "model.n_layers=1", f"train.zero_stage={stage}", "eval.every=0"]
    recipe = Recipe.load("demo", [*given, "train.precision=bf16"])
    # embedding 4096 x 256, q k v o 4 x 256^2, FFN 3 x 256 x 704, three norms; the layer's input in bfloat16
    n = 4096 * 256 + 4 * 256**2 + 3 * 256 * 704 + 3 * 256
    rows = recipe.train.sequences_per_forward(processes)
    needed = bytes_per_parameter * n + 2 * rows * 512 * 256
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(summary, "machine_bytes", lambda device: needed)
    check_memory(recipe)
    monkeypatch.setattr(summary, "machine_bytes", lambda device: needed - 1)
    with pytest.raises(ConfigError, match="training needs at least"):
        check_memory(recipe)


def test_heads_that_no_tensor_could_hold_are_refused_by_the_recipe():
    with pytest.raises(ConfigError, match="1048576 heads of 1024 channels are more than 16777216 channels; use fewer"):
        Recipe.load("demo", ["model.pattern=[attention]", "model.attention={n_heads: 1048576, head_dim: 1024}"])
