"""One small tree of exceptions: what a person can put right, and what breaks a law of the house."""


class SapflowError(Exception):
    """The root of everything that Sapflow raises on purpose."""


class InputError(SapflowError):
    """Something a person gave cannot be used; the message says what, where, and what to do, in one line."""


class MissingExtraError(InputError):
    """A part of Sapflow was called whose optional dependencies are not installed."""

    def __init__(self, part: str, extra: str) -> None:
        super().__init__(f"{part} needs packages that are not installed: pip install 'sapflow[{extra}]'")
        self.part = part
        self.extra = extra


class RunDirectoryError(InputError):
    """A run directory is missing, taken, or no run directory."""


class JournalError(InputError):
    """A file is no journal, is damaged, or was written by a version that this one cannot read."""


class UnreadableEventError(SapflowError):
    """One event cannot be decoded; readers skip and count it under `cause`."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


class IllegalTransitionError(SapflowError):
    """A seed was asked to move to a stage that its stage does not lead to; nothing was changed."""


class BlueprintError(InputError):
    """A blueprint is unknown, or does not fit the slot it was asked to grow in."""
