"""One total mapping from what dspy and lm15 raise to the three ways a model may fail.

Imported only together with dspy.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from dse.errors import DseError, LimitExceeded, ModelError, ModelUnavailable

__all__ = ["ERROR_KINDS", "map_error"]

Verdict = Literal["unavailable", "user", "context", "by_status", "by_cause"]

# Class name (dspy's and lm15's names) -> verdict, kind, remedy. Subclasses inherit the verdict of the nearest entry.
ERROR_KINDS: dict[str, tuple[Verdict, str, str]] = {
    "ContextLengthError": ("context", "context", "Use fewer rounds or shorter results, or a model with more room."),
    "ContextWindowExceededError": ("context", "context", "Use fewer rounds or shorter results, or a larger model."),
    "RateLimitError": ("unavailable", "rate_limit", "Ask again later or with less concurrency."),
    "LMRateLimitError": ("unavailable", "rate_limit", "Ask again later or with less concurrency."),
    "TimeoutError": ("unavailable", "timeout", "Ask again, or raise the timeout."),
    "LMTimeoutError": ("unavailable", "timeout", "Ask again, or raise the timeout."),
    "ServerError": ("unavailable", "server", "Ask again later."),
    "LMServerError": ("unavailable", "server", "Ask again later."),
    "TransportError": ("unavailable", "transport", "Check the network and the address, and ask again."),
    "LMTransportError": ("unavailable", "transport", "Check the network and the address, and ask again."),
    "LockTimeoutError": ("unavailable", "lock", "Another process refreshes the credential; ask again."),
    "LMLockTimeoutError": ("unavailable", "lock", "Another process refreshes the credential; ask again."),
    "StreamAssemblyError": ("unavailable", "malformed", "Ask again."),
    "LMStreamAssemblyError": ("unavailable", "malformed", "Ask again."),
    "AuthError": ("user", "auth", "Check the API key and what it may access."),
    "LMAuthError": ("user", "auth", "Check the API key and what it may access."),
    "BillingError": ("user", "billing", "Check the account's credit and quota."),
    "LMBillingError": ("user", "billing", "Check the account's credit and quota."),
    "UnsupportedModelError": ("user", "model", "Check the model's name and that the account may use it."),
    "LMUnsupportedModelError": ("user", "model", "Check the model's name and that the account may use it."),
    "InvalidRequestError": ("by_status", "request", "Change the request or its parameters."),
    "LMInvalidRequestError": ("by_status", "request", "Change the request or its parameters."),
    "CapabilityError": ("user", "unsupported", "Leave the feature out, or use another model."),
    "LMUnsupportedFeatureError": ("user", "unsupported", "Leave the feature out, or use another model."),
    "ConfigurationError": ("user", "configuration", "Set the key or setting that is named."),
    "LMConfigurationError": ("user", "configuration", "Set the key or setting that is named."),
    "ToolDerivationError": ("user", "configuration", "Describe the tool with a JSON schema."),
    "CollectionLimitError": ("user", "configuration", "Raise the collector's limit."),
    "LMCollectionLimitError": ("user", "configuration", "Raise the collector's limit."),
    "ProviderError": ("by_status", "malformed", "Ask again; if it stays, check the endpoint's address."),
    "LMProviderError": ("by_status", "malformed", "Ask again; if it stays, check the endpoint's address."),
    "LMUnexpectedError": ("by_cause", "unexpected", "See the cause below."),
    "LM15Error": ("user", "unexpected", "See the cause below."),
    "LMError": ("user", "unexpected", "See the cause below."),
}

# What a reply parser stumbles over when the endpoint's JSON has an unusable shape.
_PARSER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
_RETRY_STATUS = frozenset((408, 409, 425, 429))
_NETWORK_ERRNO = frozenset((errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETRESET))
_SHOWN = 400


@cache
def _table() -> dict[type[BaseException], tuple[Verdict, str, str]]:
    """The entries by class, so that a foreign class of the same name is not mistaken for one of theirs."""
    from dspy import lm15
    from dspy.utils import exceptions

    found: dict[type[BaseException], tuple[Verdict, str, str]] = {}
    for module in (lm15, exceptions):
        for name, entry in ERROR_KINDS.items():
            cls = getattr(module, name, None)
            if isinstance(cls, type):
                found[cls] = entry
    return found


def _network_error(exc: BaseException) -> bool:
    if isinstance(exc, (ConnectionError, TimeoutError, EOFError, socket.gaierror, socket.herror, ssl.SSLError)):
        return True
    if isinstance(exc, OSError) and exc.errno in _NETWORK_ERRNO:  # other OSErrors are about files
        return True
    for module, names in (
        ("dspy._vendor.lm15.transports", ("TransportError",)),
        ("httpx", ("TransportError",)),
        ("aiohttp", ("ClientConnectionError", "ClientPayloadError")),
    ):  # an instance can only exist when its module is imported
        classes = (getattr(sys.modules.get(module), name, None) for name in names)
        if any(isinstance(cls, type) and isinstance(exc, cls) for cls in classes):
            return True
    return False


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """`exc` and what it was raised from."""
    found: BaseException | None = exc
    while found is not None:
        yield found
        found = found.__cause__


def _text(exc: BaseException) -> str:
    """The provider's words, without the advice that dspy appends."""
    text = str(getattr(exc, "message", None) or exc) or type(exc).__name__
    text = " ".join(text.split("\n\n  To fix:")[0].split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _status(exc: BaseException) -> int | None:
    status = getattr(exc, "status", None)
    return status if isinstance(status, int) and not isinstance(status, bool) else None


def map_error(exc: Exception, *, model: str, wire: bool) -> DseError:
    """The dse error for `exc`; errors of dse come back unchanged. Raise it ``from exc``.

    Args:
        model: the model's name, for the message.
        wire: whether `exc` came out of an HTTP engine, where an unexpected ValueError is a reply of unusable shape;
            from a caller's own engine it is a bug in that engine.
    """
    if isinstance(exc, DseError):
        return exc
    table = _table()
    verdict, kind, remedy = next((table[cls] for cls in type(exc).__mro__ if cls in table), ("by_cause", "engine", ""))
    status = _status(exc)
    if verdict == "by_cause":
        cause = exc.__cause__
        if isinstance(cause, Exception) and kind == "unexpected" and not isinstance(cause, type(exc)):
            return map_error(cause, model=model, wire=wire)
        if _network_error(exc):
            timeout = isinstance(exc, TimeoutError)
            verdict, kind = "unavailable", "timeout" if timeout else "transport"
            remedy = "Check the network and the address, and ask again."
        elif wire and isinstance(exc, _PARSER_ERRORS):
            verdict, kind, remedy = "unavailable", "malformed", "Ask again; if it stays, check the endpoint."
        elif isinstance(exc, ImportError):
            verdict, remedy = "user", "Install the package that is named."
        else:
            verdict, remedy = "user", "Let an engine raise dspy.lm15 errors for failures that it expects."
    elif verdict == "by_status":
        if status is not None and (status >= 500 or status in _RETRY_STATUS):
            verdict, remedy = "unavailable", "Ask again later."
        elif status is not None and status >= 400:
            verdict, kind, remedy = "user", "request", "Change the request or its parameters."
        else:  # a refusal without a status is a refusal; a 2xx that is no completion is a malformed reply
            verdict = "user" if kind == "request" else "unavailable"
    if kind == "transport" and any(isinstance(cause, TimeoutError) for cause in _causes(exc)):
        kind, remedy = "timeout", "Ask again, or raise the timeout."
    what = f"{model}: {_text(exc)}" if isinstance(exc, tuple(table)) else f"{model}: {type(exc).__name__}: {_text(exc)}"
    details: dict[str, Any] = {"kind": kind, "model": model}
    if status is not None:
        details["status"] = status
    if getattr(exc, "request_id", None):
        details["request_id"] = str(exc.request_id)  # type: ignore[attr-defined]
    if verdict == "context":
        return LimitExceeded(what, remedy=remedy, limit="context", model=model)
    if verdict == "unavailable":
        retry_after = getattr(exc, "retry_after", None)
        if isinstance(retry_after, (int, float)) and not isinstance(retry_after, bool) and 0 <= retry_after < math.inf:
            details["retry_after_s"] = float(retry_after)
        return ModelUnavailable(what, remedy=remedy, **details)
    return ModelError(what, remedy=remedy, **details)
