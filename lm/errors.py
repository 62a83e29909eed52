"""Errors for problems a user can fix. Kept apart from pydantic, which the command line's help must not wait for."""


class UserError(Exception):
    """The command line prints these as one line and exits with 1. The message says what to change."""


class ConfigError(UserError, ValueError):
    """A recipe, a name or a path that cannot be used as it stands; one line per problem."""


class DataError(UserError, RuntimeError):
    """A download or a prepared file that cannot be used."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written, read, or does not belong to this model."""


class NaNError(UserError, FloatingPointError):
    """A model that computes NaN: its weights or its precision are at fault."""
