"""Errors for problems a user can fix. Kept apart from pydantic, which the command line's help must not wait for."""

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {"lm_eval": "eval", "scipy": "eval", "transformers": "hf"}
"""Which extra of this package installs a module."""


class UserError(Exception):
    """The command line prints these as one line and exits with `code`. The message says what to change."""

    code: int = 1


class ConfigError(UserError, ValueError):
    """A recipe, a name or a path that cannot be used as it stands; one line per problem."""


class DataError(UserError, RuntimeError):
    """A download or a prepared file that cannot be used."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written, read, or does not belong to this model."""


class NaNError(UserError, FloatingPointError):
    """A model that computes NaN: its weights or its precision are at fault."""


class Caution(UserWarning):
    """Nothing failed, but the result may not be what was meant. The command line prints it as one line."""


class Interrupted(UserError):
    """A signal ended the work; code: 128 and its number, as a shell says it."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def brief(value: object, most: int = 80) -> str:
    """repr(value) for a message: one line of at most `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@contextmanager
def concerning(field: str) -> Iterator[None]:
    """What goes wrong inside is put down to `field`: a UserError begins with it, a missing package is named."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{field}: {error}") from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        fix = f"pip install 'hybridlm[{EXTRAS[package]}]'" if package in EXTRAS else f"pip install {package}"
        raise ConfigError(f"{field}: needs the package {package}, which is not installed; {fix}") from error
