"""Every error Penstock raises on purpose.

::

    PenstockError                 exit code 1
    |-- RecipeError               exit code 2   the recipe, a flag or an argument is wrong
    |-- MissingExtra              exit code 2   a library that an adapter needs is not installed
    |-- SourceError                             a source cannot be read
    |   `-- SourceUnavailable     transient     it does not answer, or there is nothing in it yet
    |-- FeatureError                            a feature store cannot be asked
    |-- EngineError                             the place where transforms run is gone or broken
    |-- ValidationFailed          exit code 5   too many rows break the contract
    |-- StoreError                              the store is full, read-only, damaged or away
    |-- LedgerError
    |   |-- ClaimLost             transient     another worker took over this stage
    |   |-- StalePromotion        transient     the served version changed since it was compared
    |   |-- MirrorBehind          transient     promoted, but MLflow's alias has not followed yet
    |   `-- RolloutRunning        transient     another version is on trial
    |-- RegistryError                           MLflow cannot be asked, or refuses
    |-- TrainingError
    |-- EvaluationError
    `-- ServingError
        |-- InvalidRequest        HTTP 400
        |   |-- BodyTooLarge      HTTP 413
        |   |-- NotFound          HTTP 404
        |   |-- MethodNotAllowed  HTTP 405
        |   `-- ContextExceeded   HTTP 400
        |-- InvalidKey            HTTP 401
        |-- Timeout     transient HTTP 504
        |-- UnknownModel          HTTP 404
        |-- Overloaded  transient HTTP 429
        |-- RateLimited           HTTP 429      a key asks more often than it may
        |-- InsufficientQuota     HTTP 429      a key's budget does not reach
        |-- ReplicaLost transient HTTP 503      one copy of a model ended; others answer
        `-- NotReady    transient HTTP 503

An error says what was received, what is valid and what to do next: the first
two in the message, the last in ``hint``. ``transient`` tells whether trying
again can help, and drives every retry. The command line prints message and
hint without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

from typing import Any


class PenstockError(Exception):
    """Base of all errors that are a user's or the world's doing, not a bug.

    Args:
        message: What happened, with the value received.
        hint: What to do next, as one sentence; empty when there is nothing to add.
    """

    exit_code = 1
    transient = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come back whole from other processes, whatever their class asks for."""
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[PenstockError], args: tuple[Any, ...]) -> PenstockError:
    return kind.__new__(kind, *args)


class RecipeError(PenstockError):
    """The recipe, a flag or an argument is wrong; every mistake is in the message."""

    exit_code = 2


class MissingExtra(PenstockError):
    """A library that an adapter needs is not installed."""

    exit_code = 2

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed.",
            f'Install it with: pip install "penstock[{extra}]"',
        )


class SourceError(PenstockError):
    """A source cannot be read."""


class SourceUnavailable(SourceError):
    """A source does not answer now, is being changed, or has nothing in it yet."""

    transient = True


class FeatureError(PenstockError):
    """A feature store cannot be asked, or does not know what it is asked for."""


class EngineError(PenstockError):
    """The place where transforms run cannot be reached, or broke while it ran them."""


class ValidationFailed(PenstockError):
    """More rows break the contract than the recipe allows; trying again changes nothing."""

    exit_code = 5


class StoreError(PenstockError):
    """The store is full, read-only, damaged, or does not answer (then transient)."""

    def __init__(self, message: str, hint: str = "", transient: bool = False) -> None:
        super().__init__(message, hint)
        self.transient = transient


class LedgerError(PenstockError):
    """The ledger refused: an unknown name, or a state that does not allow this."""


class ClaimLost(LedgerError):
    """Another worker took over the stage because this one stopped renewing its lease."""

    transient = True


class StalePromotion(LedgerError):
    """The pointer moved between the comparison and the promotion."""

    transient = True


class MirrorBehind(LedgerError):
    """The pointer has moved, but MLflow's alias could not follow; trying again moves it."""

    transient = True


class RolloutRunning(LedgerError):
    """A version is on trial already, and there is one trial at a time."""

    transient = True


class RegistryError(PenstockError):
    """MLflow cannot be asked, or refuses: a name, a version, credentials."""

    def __init__(self, message: str, hint: str = "", transient: bool = False) -> None:
        super().__init__(message, hint)
        self.transient = transient


class TrainingError(PenstockError):
    """A training run cannot start or did not converge to anything usable."""


class EvaluationError(PenstockError):
    """An evaluation cannot run, or its results cannot be compared."""


class ServingError(PenstockError):
    """A request or a model cannot be served; ``status`` is its HTTP status."""

    status = 500
    code = "internal_error"


class InvalidRequest(ServingError):
    """The request itself is wrong; ``param`` names the field, when one is to blame."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint)
        self.param = param


class BodyTooLarge(InvalidRequest):
    """The request's body is longer than the gateway reads."""

    status = 413
    code = "request_too_large"


class NotFound(InvalidRequest):
    """There is no such path."""

    status = 404
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    """The path exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class ContextExceeded(InvalidRequest):
    """Prompt and answer together do not fit the model."""

    code = "context_length_exceeded"


class Timeout(ServingError):
    """The answer took longer than the gateway allows."""

    status = 504
    code = "timeout"
    transient = True


class UnknownModel(ServingError):
    """No model of that name is served."""

    status = 404
    code = "model_not_found"


class Overloaded(ServingError):
    """The queue is full; ``retry_after_s`` is an honest guess of when it will not be."""

    status = 429
    code = "overloaded"
    transient = True

    def __init__(self, message: str, hint: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class InvalidKey(ServingError):
    """No API key was given, or none that is valid; the message never holds what was given."""

    status = 401
    code = "invalid_api_key"


class RateLimited(ServingError):
    """A key asks for more than its rate; ``retry_after_s`` is None when waiting cannot help.

    Not transient: another backend would be refused the same.
    """

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class InsufficientQuota(ServingError):
    """A key's budget does not reach; ``retry_after_s`` is None when waiting cannot help."""

    status = 429
    code = "insufficient_quota"

    def __init__(self, message: str, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class ReplicaLost(ServingError):
    """One of several copies of a model ended while it answered; another may be asked."""

    status = 503
    code = "replica_lost"
    transient = True


class NotReady(ServingError):
    """Nothing is deployed yet, or the server is draining."""

    status = 503
    code = "not_ready"
    transient = True
