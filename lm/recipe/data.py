"""The recipe's `data` section: training mixture, validation sets, tokenizer."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..parts.errors import brief
from ..parts.ranges import MOST, Name, PathText
from ..parts.strict import Strict


class Select(Strict):
    """Which documents of a source are taken: all conditions must hold. Fields come from the documents' metadata."""

    field: str | None = Field(default=None, description="metadata field that min, max, among and exclude look at")
    min: int | float | str | None = None
    max: int | float | str | None = None
    among: list[str | int] | None = None
    exclude: list[str | int] | None = None
    hash: tuple[float, float] | None = Field(
        default=None, description="[lo, hi) of the text's hash, of a registered source's id's, in [0, 1]"
    )

    @field_validator("min", "max", "among", "exclude", mode="before")
    @classmethod
    def _dates_as_text(cls, value: Any) -> Any:
        """YAML makes dates of 2014-12-31."""
        if isinstance(value, list):
            return [cls._dates_as_text(one) for one in value]
        return value.isoformat() if isinstance(value, date) else value

    @model_validator(mode="after")
    def _field_given(self) -> Self:
        if self.field is None and any(x is not None for x in (self.min, self.max, self.among, self.exclude)):
            raise ValueError("select: min, max, among and exclude need field=, the metadata field they look at")
        if self.hash and not 0 <= self.hash[0] < self.hash[1] <= 1:
            raise ValueError(f"select.hash: {list(self.hash)} is no interval; give 0 <= lo < hi <= 1, e.g. [0.02, 1.0]")
        return self


class SourceConfig(Strict):
    """A corpus. `name` is a registered source (`hybridlm fetch`), or give `format` and `path`."""

    name: str
    format: Literal["registered", "json", "parquet", "text", "folder", "hub"] = "registered"
    path: PathText | None = Field(
        default=None, description="file, glob, folder, or hub data set as NAME or NAME:CONFIG"
    )
    text_field: str = "text"
    split: str = "train"
    max_bytes: int | None = Field(
        default=None, gt=0, le=1 << 62, description="stop after this many bytes of text, e.g. of an endless stream"
    )
    weight: float | None = Field(
        default=None, gt=0, le=MOST, description="share of the mixture; default: in proportion to tokens"
    )
    select: Select = Select()

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if (self.path is None) != (self.format == "registered"):
            raise ValueError(
                f"source {brief(self.name)}: format={self.format} {'needs' if self.path is None else 'takes no'} path"
            )
        return self


class TokenizerConfig(Strict):
    """`train` a SentencePiece BPE on the training documents, or load a `file`: SentencePiece or tokenizers JSON."""

    kind: Literal["train", "file"] = "train"
    path: PathText | None = Field(default=None, description="kind=file: the tokenizer file")
    max_bytes: int = Field(default=50_000_000, gt=0, le=1 << 40, description="kind=train: bytes of text to learn from")
    special_text: Literal["text", "control"] = Field(
        default="text",
        description="what words of a document are that spell a special token, such as <|endoftext|>: text like all "
        "others, or that token, which in a tokenizers JSON can end the document",
    )

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if (self.path is None) != (self.kind == "train"):
            raise ValueError(f"tokenizer: kind={self.kind} {'needs' if self.path is None else 'takes no'} path")
        return self


def _given_once(sources: list[SourceConfig]) -> list[SourceConfig]:
    if not sources:
        raise ValueError("an empty list; give it a source or leave it out")
    seen: set[str] = set()
    for source in sources:
        key = source.model_dump_json(exclude={"weight"})
        if key in seen:
            raise ValueError(f"source {source.name!r} is there twice; give it once, with the weight of both")
        seen.add(key)
    return sources


Sources = Annotated[list[SourceConfig], AfterValidator(_given_once)]


class DataConfig(Strict):
    """Training mixture, fixed validation sets, tokenizer."""

    train: Sources
    valid: dict[Name, Sources] = Field(default_factory=dict, description="named validation sets, never mixed")
    tokenizer: TokenizerConfig = TokenizerConfig()
    cache: PathText = Field(default="~/.cache/hybridlm", description="folder for downloads and prepared shards")
    workers: int = Field(default=2, gt=0, le=1024)
