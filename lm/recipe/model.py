"""The recipe's `model` section: a decoder and the layers it is made of."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, create_model, model_validator

from ..mixers import MIXERS
from ..mixers.options import MixerConfig
from ..parts.errors import ConfigError, brief
from ..parts.ranges import DEEPEST, LONGEST, WIDEST, Epsilon, Share
from ..parts.shape import ModelShape
from ..parts.strict import Strict, nearest
from .layers import Layer, LayerSpec, Remainder, spelled_out


class FFNConfig(Strict):
    """SwiGLU: w_down(silu(x w_gate) * (x w_up)). `hidden` defaults to 8/3 d_model rounded up to `multiple_of`."""

    hidden: int | None = Field(default=None, gt=0, le=WIDEST)
    multiple_of: int = Field(default=64, gt=0, le=WIDEST)
    bias: bool = False

    def width(self, d_model: int) -> int:
        """`hidden`, or its default for a model of this width."""
        return self.hidden or -(-8 * d_model // (3 * self.multiple_of)) * self.multiple_of


class BaseModelConfig(Strict):
    """A pre-norm decoder. Give the layers by exactly one of `pattern`, `ratio` and `layers`.

    Each registered mixer has a section of its own name here; sizes left out follow from `d_model` and `context`.
    """

    vocab_size: int = Field(default=4096, gt=1, le=LONGEST)
    d_model: int = Field(default=256, gt=0, le=WIDEST)
    n_layers: int = Field(default=8, gt=0, le=DEEPEST)
    context: int = Field(default=512, gt=1, le=LONGEST, description="tokens per training sequence")
    pattern: list[Layer] | None = Field(default=None, min_length=1, max_length=DEEPEST)
    ratio: dict[str, Share] | None = Field(default=None, min_length=1)
    layers: list[Layer] | None = Field(default=None, min_length=1, max_length=DEEPEST)
    remainder: Remainder = "error"
    """What a period of `pattern` or `ratio` that does not divide `n_layers` is: an error, or cut where the layers end;
    a kind of layer that is then left out altogether takes the last layer."""
    positions: Literal["none", "learned"] = "none"
    """`learned` adds an embedding of the position, up to `context`, to that of the token; RoPE belongs to attention."""
    ffn: FFNConfig | None = FFNConfig()
    """null leaves the feed-forward out of every layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the embedding dropped in training")
    norm_eps: Epsilon = 1e-6
    zero_centered_norms: bool = False
    """Norms of the residual stream, of queries and of keys multiply by 1 + weight, the weight starting at 0."""
    tie_embeddings: bool = True
    logit_softcap: float | None = Field(default=None, ge=0.1, le=1e4, description="logits become c * tanh(logits / c)")
    z_loss: float = Field(default=0.0, ge=0, le=1, description="weight of mean(logsumexp(logits)^2)")
    init_std: float | None = Field(
        default=None, ge=1e-6, le=1, description="default 0.02 * sqrt(512 / d_model), at most 0.04"
    )

    @model_validator(mode="after")
    def _layers_make_sense(self) -> Self:
        self.layer_specs()
        return self

    def layer_specs(self) -> list[LayerSpec]:
        """The layers in order, each with its mixer's resolved options. Raises ValueError with the fix."""
        layers = spelled_out(self.n_layers, self.remainder, pattern=self.pattern, ratio=self.ratio, layers=self.layers)
        given: dict[str, LayerSpec] = {}
        for layer in layers:
            if repr(layer) not in given:
                given[repr(layer)] = self._given(layer)
        specs = [given[repr(layer)] for layer in layers]
        options = [spec.options for spec in specs]
        own = [one.in_model(i, options) for i, one in enumerate(options)]
        finished = {key: self._finished(one) for key, one in {id(one): one for one in own}.items()}
        return [LayerSpec(spec.mixer, finished[id(one)]) for spec, one in zip(specs, own, strict=True)]

    def _given(self, layer: Layer) -> LayerSpec:
        """One layer with its options as the recipe has them."""
        if isinstance(layer, dict) and len(layer) != 1:
            raise ValueError(f"layers: {brief(layer)} is not one layer; write a name or {{name: {{option: value}}}}")
        name, own = (layer, {}) if isinstance(layer, str) else next(iter(layer.items()))
        if name not in MIXERS:
            raise ValueError(f"layers: unknown mixer {brief(name)}; {nearest(name, MIXERS)}")
        options = self.mixer_options(name)
        if own:
            try:
                options = type(options).parse({**options.model_dump(exclude_unset=True), **own}, where=f"layer {name}")
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return LayerSpec(name, options)

    def _finished(self, options: MixerConfig) -> MixerConfig:
        hidden = options.ffn_hidden or (self.ffn.width(self.d_model) if self.ffn else 0)
        finished = options.resolve(self.shape).model_copy(update={"ffn_hidden": hidden})
        if missing := finished.unfinished():
            raise TypeError(f"{type(options).__name__}.resolve: leaves {', '.join(missing)} without a size")
        heads, width = (
            max((getattr(finished, name, 1) for name in names), default=1)
            for names in (("n_heads", "n_v_heads"), ("head_dim", "v_head_dim"))
        )
        if heads * width > LONGEST:
            raise ValueError(f"layers: {heads} heads of {width} channels are more than {LONGEST} channels; use fewer")
        return finished

    @property
    def shape(self) -> ModelShape:
        """What mixers may know of this model."""
        return ModelShape(self.d_model, self.n_layers, self.context, self.norm_eps, self.zero_centered_norms)

    def mixer_options(self, name: str) -> MixerConfig:
        """This model's section for the mixer `name`."""
        return getattr(self, name)


if TYPE_CHECKING:
    ModelConfig = BaseModelConfig
else:
    ModelConfig = create_model(
        "ModelConfig",
        __base__=BaseModelConfig,
        **{name: (options, Field(default_factory=options)) for name in MIXERS for options in (MIXERS.options(name),)},
    )
