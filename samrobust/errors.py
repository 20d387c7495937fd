"""Errors that a user can cause; the command line prints each as one line and exits with 1."""


class SamrobustError(Exception):
    """Base of all errors that a user can cause; messages say where, what and what is allowed."""


class UnknownNameError(SamrobustError):
    """A name that is not registered."""


class ProtocolError(SamrobustError):
    """A protocol file, or a change to its protocol, that cannot be used."""


class PromptError(SamrobustError):
    """A file of prompts, or of masks that belong to prompts, that cannot be used."""


class DatasetError(SamrobustError):
    """A data set, image or mask that is missing, broken or empty."""


class NoObjectError(DatasetError):
    """An image with no object left to score; it is recorded, and the evaluation continues."""


class SegmenterError(SamrobustError):
    """A segmenter that cannot be built, or cannot run with a protocol or an image."""


class CheckpointError(SegmenterError):
    """A weights file that is missing, damaged or belongs to another model."""


class RunError(SamrobustError):
    """A run on disk that cannot be written, read, resumed or compared."""


class RecipeError(SamrobustError):
    """A recipe file that cannot be used."""


class TrainingError(SamrobustError):
    """A training that cannot start, continue or be stored."""
