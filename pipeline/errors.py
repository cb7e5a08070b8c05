"""The three mistakes that are not ours: the user's, the data's, the disk's.

Each message says what is wrong, where, and the way out. The command line prints them without a traceback and exits with 2.
"""

import errno

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class PipelineError(Exception):
    """Base of every error that a user of the pipeline can act on."""


class ConfigError(PipelineError):
    """The configuration, or an argument, is wrong."""


class SampleError(PipelineError):
    """A shard, manifest or sample is wrong."""


class CheckpointError(PipelineError):
    """A checkpoint is missing, incomplete, or of another model or run."""


def is_users(err: BaseException) -> bool:
    """Whether a message without a traceback is enough: a PipelineError, or a file or folder named by the user that cannot be used."""
    return isinstance(err, PipelineError) or (isinstance(err, OSError) and (err.filename is not None or err.errno in _OF_THE_DISK))
