"""The one family of errors that a user can cause and mend.

Every message says what was given, what is allowed and what to change. A mistake of our own is an
``assert`` or an ordinary exception, so that its traceback is kept.
"""


class UserError(Exception):
    """Something that the user can mend; commands print the message alone and leave with `exit_code`."""

    exit_code = 1


class ConfigError(UserError):
    """The configuration is wrong: unknown key, wrong type, value out of range."""

    exit_code = 2


class CorpusError(UserError):
    """The raw corpus cannot be read, or too much of it was rejected."""


class InputError(UserError):
    """A sentence, a mention in it or a photo that something is asked about cannot be used."""


class ShardError(UserError):
    """Packed data is missing, damaged, changed, or of another format version."""


class WeightsError(UserError):
    """Model weights, a tokenizer or a language model cannot be found or do not fit."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, read, or resumed from with this configuration."""


class TrainingError(UserError):
    """Training cannot go on, for example because the loss is not finite."""


class NotFiniteError(TrainingError):
    """A loss or a feature of a step is NaN or infinite: the step is not taken, and training may go on."""


class TrackingError(UserError):
    """A run folder cannot be read, or MLflow does not take it."""


class StudyError(UserError):
    """A study's folder cannot be read: what was asked, or what a cell predicted."""
