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


class ExporterRefusedError(InputError):
    """A backend will not have what an exporter brings until a person has changed something; what, the message says."""


class BackendAwayError(SapflowError):
    """A backend cannot take a batch now: away, slow, full or failing. The same batch is to be brought again.

    Attributes:
        retry_after: seconds that the backend asks to be left alone for; None where it does not say.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
