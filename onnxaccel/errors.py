"""Every error onnxaccel raises on purpose.

    AccelError
    ├── ModelError              the ONNX graph is damaged, or does not fit what is asked of it
    │   └── UnsupportedOperator a node has no gradient rule, or its attributes are outside the rule
    ├── ConversionError         a source model cannot become ONNX
    │   ├── UnknownFormat       the files are of no format we read
    │   ├── MissingWeights      a parameter has no weights, or weights of another shape
    │   └── ParityError         converted, but the numbers differ from the source framework's
    ├── DataError               the data set is unreadable, empty, or does not fit the model
    ├── TrainingError           training cannot start or go on
    │   └── CheckpointError     a checkpoint is damaged or belongs to another model
    ├── ComparisonError         a comparison cannot be made, or its document cannot be read
    ├── ProviderError           an execution provider is not usable here
    ├── ProtectionError         a file cannot be opened or trusted: not encrypted, or in a version to come
    │   ├── MissingKey          an encrypted file, and no key
    │   ├── WrongKey            an encrypted file, and another key
    │   ├── AlteredFile         an encrypted file that was altered or cut short
    │   └── SignatureError      a file is not signed, not by this key, or was altered since
    ├── MissingDependency       an optional package is not installed
    └── OutputError             a result cannot be written

A message says what went wrong, where, and what to do; the command line prints it as its one line.
"""

from __future__ import annotations


class AccelError(Exception):
    """Base class of every error that onnxaccel raises on purpose."""


class ModelError(AccelError):
    """The ONNX graph is damaged, or does not fit what is asked of it."""


class UnsupportedOperator(ModelError):
    """A node has no gradient rule, or uses attributes that its rule does not cover."""


class ConversionError(AccelError):
    """A source model cannot become ONNX."""


class UnknownFormat(ConversionError):
    """The given files are of no model format that onnxaccel reads."""


class MissingWeights(ConversionError):
    """A parameter has no weights in the given files, or weights of another shape."""


class ParityError(ConversionError):
    """The converted graph does not compute what the source framework computes."""


class DataError(AccelError):
    """A data set is unreadable, empty, or does not fit the model."""


class TrainingError(AccelError):
    """Training cannot start or cannot go on."""


class CheckpointError(TrainingError):
    """A checkpoint is damaged, or belongs to another model or optimizer."""


class ComparisonError(AccelError):
    """A comparison cannot be made, or its document cannot be read."""


class ProviderError(AccelError):
    """An execution provider is not usable on this machine."""


class ProtectionError(AccelError):
    """A protected file cannot be opened or trusted."""


class MissingKey(ProtectionError):
    """A file is encrypted, and there is no key for it."""


class WrongKey(ProtectionError):
    """A file was encrypted with another key."""


class AlteredFile(ProtectionError):
    """An encrypted file was altered, or cut short."""


class SignatureError(ProtectionError):
    """A file is not signed, not by the key that is asked for, or was altered after it was signed."""


class OutputError(AccelError):
    """A result cannot be written where it was asked for."""


class MissingDependency(AccelError):
    """An optional package is not installed.

    Args:
        package: The import name that was not found.
        extra: The extra of onnxaccel that installs it.
        purpose: What it is needed for, completing "... is needed to".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is needed to {purpose}, and is not installed; "
            f"install it with: pip install 'onnxaccel[{extra}]'"
        )
        self.package = package
        self.extra = extra
