"""The exceptions that mmdistill raises on purpose; the command line turns each into one line and exit code 2."""


class MmdistillError(Exception):
    """Base of every error that mmdistill raises on purpose."""


class ConfigError(MmdistillError, ValueError):
    """An option, a name or a combination of methods that cannot work."""


class ShapeError(MmdistillError, ValueError):
    """A tensor whose shape is not the one expected."""


class DataError(MmdistillError):
    """Data that is missing, damaged, or unusable as it is."""


class CheckpointError(MmdistillError):
    """A saved set, run or checkpoint that is missing, damaged, or belongs to something else."""


class UnsupportedError(MmdistillError):
    """A composition that is well-formed but that this domain or network cannot offer."""


class NonFiniteError(MmdistillError):
    """A loss or gradient became NaN or infinite."""


class MemoryExhaustedError(MmdistillError):
    """The device or the machine has no more memory for what was asked."""
