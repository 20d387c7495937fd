"""The errors that a user can cause; the command line prints each as one line and exits with 1."""


class SamrobustError(Exception):
    """What the user asked for cannot be done; the message says where, what and what is allowed."""


class UnknownNameError(SamrobustError):
    """A name that no registry knows."""


class ProtocolError(SamrobustError):
    """A protocol file, or a change asked of it, that cannot be used."""


class DatasetError(SamrobustError):
    """A data set, image or mask that is missing, broken or empty."""


class NoObjectError(DatasetError):
    """An image of which every object was left out; it is recorded, and the others go on."""


class SegmenterError(SamrobustError):
    """A segmenter that cannot be built, or cannot run what is asked of it."""


class CheckpointError(SegmenterError):
    """A weights file that is missing, damaged or of another model."""


class RunError(SamrobustError):
    """A run on disk that cannot be written, read, resumed or compared."""


class RecipeError(SamrobustError):
    """A recipe file that cannot be used."""


class TrainingError(SamrobustError):
    """A training that cannot start, go on or be stored."""
