"""Every error of the package, by what it stops.

    MmdataError
    ├── ConfigError      nothing has started: a definition, a file or a flag is wrong
    ├── RecordError      one row: it carries the outcome that the row ends with
    ├── PartitionError   one attempt at one task: it is tried again, then counted against the run
    │   └── ShapeError   a model's batch was too large for the memory: the partition is done again with half of it
    └── RunError         the run: everything written so far stays valid
        └── BusyError    another run holds the folder

Each says what is wrong and where; `hint` says what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MmdataError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders, and keyword arguments are not in `args`.
        return (_rebuild, (type(self), self.message, self.hint, self.__dict__.copy()))


class ConfigError(MmdataError):
    """A definition, a file or a flag is wrong; nothing has been done yet."""

    exit_code = 2


class RecordError(MmdataError):
    """One row failed; `outcome` is from the closed list `mmdata.schema.OUTCOMES`."""

    def __init__(self, message: str, *, outcome: str = "bad_row", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome


class PartitionError(MmdataError):
    """One attempt at one task failed; the scheduler tries it again."""


class ShapeError(PartitionError):
    """Memory does not hold the batch shape, which its scorer has halved: what the partition has of it is done again."""


class RunError(MmdataError):
    """The run cannot go on; what it wrote is valid and the same command resumes it."""


class BusyError(RunError):
    """Another run holds the folder, or has taken it over; nothing was touched since."""

    exit_code = 4


def _rebuild(cls: type[MmdataError], message: str, hint: str | None, state: dict[str, object]) -> MmdataError:
    error = cls(message, hint=hint)
    error.__dict__.update(state)
    return error


def printable(text: str) -> str:
    """Return a text for a terminal: control characters from the data do not reach it raw."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known word, or all of them."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
