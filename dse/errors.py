"""Every error dse raises on purpose.

The tree separates *whose* failure it is, because each has a different consequence:

    DseError
    ├── UserError                a mistake in a declaration, file or call; fix it and run again
    │   ├── InvalidValue         limits, a rate or an approval with a field that cannot be; a ValueError as well
    │   ├── ContractError        a tool cannot be declared like this
    │   │   └── ContractMismatch a bound tool is not the one that was proven
    │   ├── SignatureError       a signature cannot be declared like this
    │   │   └── SignatureMismatch
    │   ├── InputError           a program was called with inputs that its signature refuses
    │   ├── PlanError            a plan could do something the rules forbid
    │   ├── AllowListError       an attempt to widen what an artifact allows
    │   ├── ToolboxError         a tool has no implementation, or two
    │   ├── MalformedJSON        not strict JSON: duplicate keys, NaN, trailing text
    │   ├── Unserialisable       a value has no canonical form
    │   ├── DatasetError
    │   │   ├── MalformedRow     file, line and field of a row that cannot be read
    │   │   ├── DuplicateRow     two rows with one id, or with the same content
    │   │   ├── MissingHoldout   no sealed split, or too small to decide anything
    │   │   ├── ContaminatedSplit rows of one cluster, or near-duplicates, on both sides of a split
    │   │   └── DatasetChanged   the stored split or revision does not fit the data
    │   ├── MetricError          a metric returned something that is not a score
    │   ├── PriceMissing         a budget in money, and a model whose price is not known
    │   ├── EnvironmentRequired  write tools would run outside an environment
    │   ├── ArtifactError
    │   │   ├── ArtifactTampered content does not match its digest
    │   │   ├── ArtifactInvalid  unknown or missing field, wrong type
    │   │   ├── ArtifactVersion  a schema version this dse cannot read
    │   │   ├── ArtifactNotFound
    │   │   └── UnprovenModel    another model than the one the evidence is for
    │   ├── CassetteError        a recording cannot be read or written
    │   ├── ModelError           a model specification or request that can never work
    │   ├── StoreError           a store that cannot be opened or is of another version
    │   │   └── JournalTampered  a journal entry, snapshot or decision that its key did not write
    │   ├── RunNotResumable      no such run, or finished, or another program's
    │   ├── DecisionRefused      a decision about something else than what was shown, or too late
    │   └── Refused              the caller asked for something that policy refuses (promote, sealed data)
    ├── ToolFault                what a program may see and handle when a tool call goes wrong
    │   ├── ToolNotAllowed · ToolArgumentError · ToolLimitReached · ToolRateLimited · ToolDenied
    │   ├── ToolTimeout · ToolReturnError · ToolOutputTooLarge · ToolScriptFailed
    │   └── ToolFailed           the implementation raised
    ├── RunFailed                the candidate failed: evaluation scores it
    │   ├── LimitExceeded        a declared limit was hit
    │   ├── OutputInvalid        no valid output within the repair budget
    │   ├── ScriptFailed         a given script was refused by the check, or failed
    │   ├── Abstained            a script left the input to somebody else, and nobody else was there
    │   └── NoSubmission         the rounds ended without `submit`
    ├── RunSuspended             the run waits for a decision about a tool call
    │   └── EffectUnknown        a write was started and nobody knows whether it took effect
    ├── BudgetExhausted          a compile or evaluation would spend more than it was given
    └── InfrastructureError      nobody's program failed; retried, then aborts, never scored
        ├── ModelUnavailable     429, 5xx, timeouts, cut connections, truncated or malformed responses
        ├── CassetteMiss         a replay has no entry for this request
        ├── SandboxUnavailable   an interpreter worker died or could not be had
        ├── StoreUnavailable     the store could not be written or read
        ├── RunTaken             another process has this run
        ├── CompileTaken         another process has this compile
        ├── ReplayDiverged       the program takes another path than its journal
        └── WorkerLost           a process that ran rollouts died or could not be reached

Each error says what failed, the offending value and a remedy, has a stable ``code``, and pickles.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "Abstained", "AllowListError", "ArtifactError", "ArtifactInvalid", "ArtifactNotFound", "ArtifactTampered", "ArtifactVersion",
    "BudgetExhausted", "CassetteError", "CassetteMiss", "CompileTaken", "ContaminatedSplit", "ContractError", "ContractMismatch",
    "DatasetChanged", "DatasetError", "DecisionRefused", "DseError", "DuplicateRow", "EffectUnknown",
    "EnvironmentRequired", "InfrastructureError", "InputError", "InvalidValue", "JournalTampered", "LimitExceeded", "MalformedJSON",
    "MalformedRow", "MetricError", "MissingHoldout", "ModelError", "ModelUnavailable", "NoSubmission", "OutputInvalid",
    "PlanError", "PriceMissing", "Refused", "ReplayDiverged", "RunFailed", "RunNotResumable", "RunSuspended", "RunTaken",
    "SandboxUnavailable", "ScriptFailed", "SignatureError", "SignatureMismatch", "StoreError", "StoreUnavailable",
    "ToolArgumentError", "ToolDenied", "ToolFailed", "ToolFault", "ToolLimitReached", "ToolNotAllowed",
    "ToolOutputTooLarge", "ToolRateLimited", "ToolReturnError", "ToolScriptFailed", "ToolTimeout", "ToolboxError", "UnprovenModel",
    "Unserialisable", "UserError", "WorkerLost",
]  # fmt: skip

_SHOWN = 200


def _shown(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer too long to be written; what holds itself in its own repr
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _plain(text: str) -> str:
    """Without halves of surrogate pairs, which other people's messages may hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class DseError(Exception):
    """Base of all dse errors.

    Args:
        what: what failed, one sentence without a final period.
        value: the offending value, shown shortened in the message.
        remedy: what to do about it.
        details: further facts as plain data (file, line, field, limits, effects ...).
    """

    code = "DSE000"

    def __init__(self, what: str, *, value: Any = None, remedy: str = "", **details: Any) -> None:
        self.what = what
        self.value = value
        self.remedy = remedy
        self.details = details
        super().__init__(what)

    def __str__(self) -> str:
        parts = [f"[{self.code}] {self.what.removesuffix('.') if self.value is not None or self.remedy else self.what}"]
        if self.value is not None:
            parts.append(f" (got: {_shown(self.value)})")
        if self.remedy:
            parts.append(f". {self.remedy}")
        return "".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.value, self.remedy, self.details)

    def to_dict(self) -> dict[str, Any]:
        """The error as plain data that JSON can hold: code, class, what, value (shortened text), remedy."""
        return {
            "code": self.code,
            "class": type(self).__name__,
            "what": _plain(self.what),
            "value": None if self.value is None else _plain(_shown(self.value)),
            "remedy": _plain(self.remedy),
        }


def _rebuild(cls: type[DseError], what: str, value: Any, remedy: str, details: dict[str, Any]) -> DseError:
    return cls(what, value=value, remedy=remedy, **details)



class UserError(DseError):
    """A mistake by the developer; nothing was run or changed."""

    code = "DSE100"


class InvalidValue(UserError, ValueError):
    """Limits, a rate or an approval have a field that is unknown, of the wrong type or out of range."""

    code = "DSE101"


class ContractError(UserError):
    """A tool cannot be declared like this."""

    code = "DSE110"


class ContractMismatch(ContractError):
    """A bound tool's interface differs from the one recorded."""

    code = "DSE111"


class SignatureError(UserError):
    """A signature cannot be declared like this."""

    code = "DSE120"


class SignatureMismatch(SignatureError):
    """A signature differs from the one recorded."""

    code = "DSE121"


class InputError(UserError):
    """A program was called with inputs that its signature refuses."""

    code = "DSE122"


class PlanError(UserError):
    """A plan is incomplete or could do something the rules forbid."""

    code = "DSE130"


class AllowListError(UserError):
    """An attempt to widen what an artifact or signature allows."""

    code = "DSE131"


class ToolboxError(UserError):
    """A tool has no implementation, or more than one."""

    code = "DSE132"


class MalformedJSON(UserError):
    """Text is not strict JSON (duplicate keys, NaN, trailing text ...)."""

    code = "DSE140"


class Unserialisable(UserError):
    """A value has no canonical JSON form."""

    code = "DSE141"


class DatasetError(UserError):
    """A dataset cannot be used as it is."""

    code = "DSE150"


class MalformedRow(DatasetError):
    """A row cannot be read; ``details`` has file, line and field."""

    code = "DSE151"


class DuplicateRow(DatasetError):
    """Two rows share an id or their content."""

    code = "DSE152"


class MissingHoldout(DatasetError):
    """There is no sealed split, or it is too small to decide anything."""

    code = "DSE153"


class ContaminatedSplit(DatasetError):
    """A cluster, a duplicate or a near-duplicate lies on both sides of a split."""

    code = "DSE154"


class DatasetChanged(DatasetError):
    """The stored revision or split assignment does not fit the data."""

    code = "DSE155"


class MetricError(UserError):
    """A metric returned something that is not a score in [0, 1]."""

    code = "DSE160"


class EnvironmentRequired(UserError):
    """Write tools would run outside an environment during evaluation."""

    code = "DSE161"


class PriceMissing(UserError):
    """A budget in money cannot be kept: the price of a model is not known."""

    code = "DSE162"


class ArtifactError(UserError):
    """An artifact cannot be used."""

    code = "DSE170"


class ArtifactTampered(ArtifactError):
    """An artifact's content does not match its digest."""

    code = "DSE171"


class ArtifactInvalid(ArtifactError):
    """An artifact has an unknown or missing field or a value of the wrong type."""

    code = "DSE172"


class ArtifactVersion(ArtifactError):
    """An artifact has a schema version that this dse cannot read."""

    code = "DSE173"


class ArtifactNotFound(ArtifactError):
    """No artifact has this name, id or alias."""

    code = "DSE174"


class UnprovenModel(ArtifactError):
    """The artifact's evidence is for another model."""

    code = "DSE175"


class CassetteError(UserError):
    """A recording cannot be read or written."""

    code = "DSE180"


class ModelError(UserError):
    """A model specification or request that can never work (unknown model, bad key, refused request)."""

    code = "DSE181"


class StoreError(UserError):
    """A store cannot be opened, or is of a version this dse cannot use."""

    code = "DSE182"


class JournalTampered(StoreError):
    """A journal entry, a snapshot or a decision in the store was not written with the store's key, or stands elsewhere
    than it was written. Nothing of it was used."""

    code = "DSE183"


class RunNotResumable(UserError):
    """There is no such run, it is finished, or it belongs to another program."""

    code = "DSE184"


class DecisionRefused(UserError):
    """A decision about other arguments than those shown, about nothing that waits, or after it expired."""

    code = "DSE185"


class Refused(UserError):
    """Policy refuses what the caller asked for."""

    code = "DSE190"


class ToolFault(DseError):
    """A tool call that did not give a result. The program sees ``message`` and may handle it."""

    code = "DSE200"

    @property
    def message(self) -> str:
        """What the model is told: no host paths, no traceback."""
        return f"{self.what}. {self.remedy}".strip() if self.remedy else self.what


class ToolNotAllowed(ToolFault):
    """The name is not on the allow-list."""

    code = "DSE201"


class ToolArgumentError(ToolFault):
    """Arguments do not fit the contract; the tool was not run."""

    code = "DSE202"


class ToolLimitReached(ToolFault):
    """The tool's own ``max_calls`` is used up; the tool was not run."""

    code = "DSE203"


class ToolRateLimited(ToolFault):
    """The tool's rate would make the call wait longer than its timeout; it was not run."""

    code = "DSE204"


class ToolDenied(ToolFault):
    """A decision about the call was no; the tool was not run."""

    code = "DSE205"


class ToolTimeout(ToolFault):
    """The tool did not finish in time; for a write its effect is unknown."""

    code = "DSE206"


class ToolReturnError(ToolFault):
    """The tool's result does not fit its contract."""

    code = "DSE207"


class ToolOutputTooLarge(ToolFault):
    """The tool's result is larger than the contract allows."""

    code = "DSE208"


class ToolFailed(ToolFault):
    """The implementation raised."""

    code = "DSE209"


class ToolScriptFailed(ToolFault):
    """The script that a script tool was given raised; its calls before that took effect."""

    code = "DSE215"


class RunFailed(DseError):
    """The program did not produce a valid output. ``details``: run_id, outcome, effects."""

    code = "DSE300"


class LimitExceeded(RunFailed):
    """A declared limit was hit. ``details['limit']`` names it."""

    code = "DSE301"


class OutputInvalid(RunFailed):
    """No output that fits the signature within the repair budget."""

    code = "DSE302"


class NoSubmission(RunFailed):
    """The rounds ended without a submitted answer."""

    code = "DSE303"


class ScriptFailed(RunFailed):
    """A given script did not pass the check, or failed while running."""

    code = "DSE305"


class Abstained(RunFailed):
    """A distilled script called ``abstain()``; the value is its reason."""

    code = "DSE306"


class RunSuspended(DseError):
    """The run waits for a decision. ``details``: run_id, pending (list of calls with argument hashes)."""

    code = "DSE310"


class EffectUnknown(RunSuspended):
    """A write that must not be repeated was started, and its outcome was never recorded. ``details``: run_id, unknown
    (list of calls). Resume with a decision for each: it happened, it did not, or try again."""

    code = "DSE311"


class BudgetExhausted(DseError):
    """The next step could spend more than the budget has left; it was not taken."""

    code = "DSE320"


class InfrastructureError(DseError):
    """Something outside the program failed. Never scored."""

    code = "DSE400"


class ModelUnavailable(InfrastructureError):
    """The model endpoint gave no usable completion. ``details``: retry_after_s where the endpoint said so."""

    code = "DSE401"


class CassetteMiss(InfrastructureError):
    """A replay has no entry for the request; the message shows the nearest recorded one."""

    code = "DSE402"


class SandboxUnavailable(InfrastructureError):
    """An interpreter worker died or could not be had."""

    code = "DSE403"


class StoreUnavailable(InfrastructureError):
    """The store could not be read or written."""

    code = "DSE404"


class RunTaken(InfrastructureError):
    """Another process has this run, or took it over. Nothing of what this one did afterwards is recorded."""

    code = "DSE405"


class ReplayDiverged(InfrastructureError):
    """The program takes another path than the one its journal holds. Nothing new was executed."""

    code = "DSE406"


class WorkerLost(InfrastructureError):
    """A worker process that ran rollouts died, or its machine went away. What it had under way is started again."""

    code = "DSE407"


class CompileTaken(InfrastructureError):
    """Another process or thread has this compile, or took it over: two at it would pay twice. ``details``: owner, since."""

    code = "DSE408"
