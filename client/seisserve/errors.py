"""What can go wrong, and whose turn it is to act.

SeisserveError
├── UsageError          the call is wrong: fix the option, the name, the command   (exit 2, INVALID_ARGUMENT)
│   ├── ModelNotFound   no such model or version                                   (exit 2, NOT_FOUND)
│   └── MissingExtra    an optional package is not installed                       (exit 2)
├── WaveformError       this input cannot be used, others can                      (exit 3, INVALID_ARGUMENT)
├── BundleError         a model folder is damaged or breaks its contract           (exit 1, FAILED_PRECONDITION)
└── ServerError         the server refused, or could not be reached                (exit 2)
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "MissingExtra",
    "ModelNotFound",
    "SeisserveError",
    "ServerError",
    "UsageError",
    "WaveformError",
]


class SeisserveError(Exception):
    """Base of all errors that this project raises on purpose; its text is one line for the person who meets it."""


class UsageError(SeisserveError, ValueError):
    """The call is wrong: the text names the argument, what it was and what it may be."""


class ModelNotFound(UsageError):
    """The repository has no such model, or no such version of it; the text lists what there is."""


class MissingExtra(UsageError):
    """An optional package is not installed; the text has the command that installs it."""


class WaveformError(SeisserveError):
    """The waveforms cannot be used: the text names the trace and what is wrong with it."""


class BundleError(SeisserveError):
    """A model folder is damaged, incomplete or breaks its own manifest."""


class ServerError(SeisserveError):
    """The server could not be reached or refused the call."""
