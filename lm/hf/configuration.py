"""The `hybridlm` model type's configuration: the model section of a recipe inside a transformers configuration.

Imported while transformers sets up its auto classes, so it needs nothing of transformers but the base class.
"""

from typing import TYPE_CHECKING, Any, Self

from transformers.configuration_utils import PretrainedConfig

from ..parts.errors import ConfigError

if TYPE_CHECKING:
    from ..recipe.model import BaseModelConfig


SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
"""What tools look for in a configuration; all of it follows from the model section."""


class HybridLMConfig(PretrainedConfig):
    """`model` is the model section of a recipe, as a mapping; config.json holds it whole, defaults written out.

    The sizes that transformers and the tools around it look for are read off the section. Raises ConfigError, with one
    line per problem, when it is no valid model.
    """

    model_type = "hybridlm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  Trainer adds another list to it

    model: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        from .register import register_model

        register_model()  # whoever holds a configuration can ask for its model
        refuse_quantised(kwargs.get("quantization_config"))
        kwargs.pop("auto_map", None)  # code that a checkpoint came with: this class takes its place
        section = self.model_config()
        self.model = section.model_dump(mode="json")
        self.tie_word_embeddings = section.tie_embeddings
        for name in SIZES:
            if name in kwargs and (given := kwargs.pop(name)) != (own := getattr(self, name)):
                raise ConfigError(f"config.json: {name} is {given}, but section `model` has {own}; change it there")
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: "BaseModelConfig", **other: Any) -> Self:
        """The configuration of a model section; `other` are transformers' own fields, such as eos_token_id."""
        return cls(model=model.model_dump(mode="json"), **other)

    def model_config(self) -> "BaseModelConfig":
        """The model section, validated."""
        from ..recipe.model import ModelConfig

        return ModelConfig.parse(self.section, where="config.json: model")

    @property
    def section(self) -> dict[str, Any]:
        """`model`, or a small model without one: transformers makes a configuration of nothing to know the defaults."""
        return self.model if self.model is not None else {"pattern": ["attention"]}

    def to_dict(self) -> dict[str, Any]:
        """With the sizes that follow from `model` beside it."""
        return super().to_dict() | {name: getattr(self, name) for name in SIZES}

    @property
    def vocab_size(self) -> int:
        return self.section["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:  # resize_token_embeddings does this
        self.section["vocab_size"] = size

    @property
    def hidden_size(self) -> int:
        return self.section["d_model"]

    @property
    def num_attention_heads(self) -> int:
        """Those of the first attention layer, else of the first layer that has heads, else 1."""
        specs = sorted(self.model_config().layer_specs(), key=lambda spec: spec.mixer != "attention")
        return next((n for spec in specs if (n := getattr(spec.options, "n_heads", None))), 1)

    @property
    def num_hidden_layers(self) -> int:
        return self.section["n_layers"]

    @property
    def max_position_embeddings(self) -> int:
        return self.section["context"]


def refuse_quantised(quantization: Any) -> None:
    """Raises ConfigError for a quantisation: those of transformers replace layers whose weights ours read."""
    if quantization is not None:
        kind = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        raise ConfigError(
            f"quantization_config: {kind} is not supported by hybridlm models; load with dtype=bfloat16, or export a "
            "Llama-family model and quantise that"
        )
