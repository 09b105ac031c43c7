"""Tool contracts: what a tool takes, gives and does, and under which policy it may be called.

A contract is data. ``interface_id`` covers what a caller can see (name, description, parameters, returns,
effect); ``policy_id`` covers how calls are treated. ``@tool`` derives the contract from a typed function;
``Toolbox`` (toolbox.py) binds contracts to implementations.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import keyword
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, model_validator
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from dse.canonical import digest
from dse.contracts.conditions import Condition, in_wire, read_conditions
from dse.contracts.readable import holds, is_alias, unreadable
from dse.contracts.revision import source_revision
from dse.contracts.schema import make_model, schema_of
from dse.declared import Declared
from dse.errors import ContractError, UserError

__all__ = ["Approval", "Rate", "Tool", "ToolContext", "ToolContract", "tool"]

Effect = Literal["pure", "read", "write"]
Concurrency = Literal["parallel", "ordered", "exclusive"]
RESERVED = frozenset({"submit", "abstain", "dse_gate", "asyncio"})
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_OUTPUT_BYTES = 262_144
Deps = TypeVar("Deps")


class Rate(Declared):
    """At most `calls` calls in any window of `per_s` seconds, over all runs of one toolbox.

    In an evaluation a call is refused for the calls of its own rollout only; the others' are waited for.
    """

    calls: int = Field(ge=1)
    per_s: float = Field(gt=0, allow_inf_nan=False)


class Approval(Declared):
    """When a call needs a decision before it runs.

    Exactly one of: ``always=True``; ``when={argument: {operator: value}}`` (all conditions must hold;
    operators ``eq ne gt ge lt le in not_in``; values of the parameter's type, lists of them for ``in`` and
    ``not_in``); ``rule="name"`` with a ``version`` (a callable registered with the toolbox under ``name@version``).
    """

    always: bool = False
    when: dict[str, dict[Literal["eq", "ne", "gt", "ge", "lt", "le", "in", "not_in"], Any]] | None = None
    rule: str | None = None
    version: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Approval:
        if sum((self.always, self.when is not None, self.rule is not None)) != 1:
            raise ValueError("give exactly one of always=True, when={...}, rule='name'")
        if (self.rule is None) != (self.version is None):
            raise ValueError("a rule needs a version, and only a rule has one")
        return self


class ToolContract(BaseModel):
    """One tool as data. Serialises to canonical JSON with ``model_dump(mode="json")``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    parameters: dict[str, Any]
    returns: dict[str, Any]
    effect: Effect
    idempotent: bool = False
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, allow_inf_nan=False)
    max_calls: int | None = Field(default=None, ge=1)
    rate: Rate | None = None
    cost_usd: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    approval: Approval | None = None
    concurrency: Concurrency = "parallel"
    max_output_bytes: int = Field(default=DEFAULT_OUTPUT_BYTES, ge=1)
    sensitive: tuple[str, ...] = ()

    INTERFACE: typing.ClassVar[tuple[str, ...]] = ("name", "description", "parameters", "returns", "effect")

    @model_validator(mode="after")
    def _fits(self) -> ToolContract:
        check_name(self.name)
        if self.parameters.get("type") != "object":
            raise ValueError("parameters must be a JSON Schema of type object")
        if not isinstance(self.parameters.get("properties", {}), dict):
            raise ValueError("the properties of the parameters must be an object")
        known = set(self.parameters.get("properties", {})) | {"return"} | _property_names(self.returns)
        for name in self.sensitive:
            if name not in known:
                raise ValueError(f"sensitive names {name!r}, which is neither a parameter nor a returned field")
        for name in (self.approval.when or {}) if self.approval else ():
            if name not in self.parameters.get("properties", {}):
                raise ValueError(f"approval names {name!r}, which is no parameter")
        return self

    @functools.cached_property
    def interface_id(self) -> str:
        """Changes exactly when name, description, parameters, returns or effect change."""
        data = self.model_dump(mode="json")
        return digest({key: data[key] for key in self.INTERFACE})

    @functools.cached_property
    def policy_id(self) -> str:
        """Changes exactly when anything outside the interface changes."""
        data = self.model_dump(mode="json")
        return digest({key: value for key, value in data.items() if key not in self.INTERFACE})

    @functools.cached_property
    def conditions(self) -> list[Condition]:
        """Those of the approval, as they are compared."""
        return read_conditions(self.approval.when or {}, self.parameters) if self.approval else []

    @property
    def repeatable(self) -> bool:
        """True if running the call twice does no harm."""
        return self.effect != "write" or self.idempotent


def _property_names(schema: Any) -> set[str]:
    names: set[str] = set()
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            names |= set(schema["properties"])
        for value in schema.values():
            names |= _property_names(value)
    elif isinstance(schema, list):
        for value in schema:
            names |= _property_names(value)
    return names


def check_name(name: str) -> None:
    """Refuse names that a guest could not call, or that would hide something.

    Raises:
        ContractError
    """
    remedy = "Give the tool another name, for example with @dse.tool(name=...)."
    if not name.isidentifier() or not name.isascii() or name.startswith("_") or len(name) > 64:
        raise ContractError("A tool's name must be an ASCII identifier of at most 64 characters without a leading "
                            "underscore", value=name, remedy=remedy)  # fmt: skip
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ContractError("A tool cannot have the name of a Python keyword", value=name, remedy=remedy)
    if hasattr(builtins, name):
        raise ContractError("A tool cannot have the name of a Python builtin: code would call the builtin instead",
                            value=name, remedy=remedy)  # fmt: skip
    if name in RESERVED:
        raise ContractError("This name is reserved by dse", value=name, remedy=remedy)


@dataclass(frozen=True, slots=True)
class ToolContext(Generic[Deps]):
    """What an implementation may know about its call. The model never sees any of it.

    Declare a parameter annotated ``dse.ToolContext`` or ``dse.ToolContext[MyDeps]`` to receive it.

    Attributes:
        deps: the dependencies of the program, run or environment.
        run_id: the run.
        call_id: the call's number within the run, ascending from 1.
        idempotency_key: stable for this call of this run, also when it is tried again.
        deadline: event-loop time (seconds) after which the call counts as timed out.
    """

    deps: Deps
    run_id: str
    call_id: int
    idempotency_key: str
    deadline: float
    _caller: Any = field(default=None, repr=False, compare=False)  # of a script tool: its way to calls of the same run


@dataclass(frozen=True)
class Tool:
    """A contract with its Python types and, unless only declared, its implementation. Callable as the function.

    ``deps_type`` shows what the implementation expects as ``ctx.deps`` (``Shop`` of ``ToolContext[Shop]``); empty where it
    does not say, or takes None.
    """

    contract: ToolContract
    fn: Callable[..., Any] | None
    params: type[BaseModel]
    returns: TypeAdapter[Any]
    context_parameter: str | None = None
    revision: str = ""
    nests: Mapping[str, str] | None = None  # of a script tool: the tools it may call, with their interface ids
    _declared: Callable[..., Any] | None = field(default=None, repr=False)
    deps_type: str = ""

    @property
    def name(self) -> str:
        return self.contract.name

    def __repr__(self) -> str:
        return f"<dse.Tool {self.name} ({self.contract.effect}) {self.contract.interface_id[7:19]}>"

    @functools.cached_property
    def is_async(self) -> bool:
        return self.fn is not None and (
            inspect.iscoroutinefunction(self.fn) or inspect.iscoroutinefunction(getattr(self.fn, "__call__", None))  # noqa: B004
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fn is None:
            raise ContractError("This tool is declared without an implementation", value=self.name,
                                remedy="Bind one with dse.Toolbox([...]).bind(name, function).")  # fmt: skip
        return self.fn(*args, **kwargs)


def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    effect: Effect | None = None,
    name: str | None = None,
    description: str | None = None,
    idempotent: bool | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_calls: int | None = None,
    rate: Rate | tuple[int, float] | None = None,
    cost_usd: float = 0.0,
    approval: Approval | Literal["always"] | None = None,
    concurrency: Concurrency | None = None,
    max_output_bytes: int = DEFAULT_OUTPUT_BYTES,
    sensitive: tuple[str, ...] | list[str] = (),
    revision: str | None = None,
    **unknown: Any,
) -> Any:
    """Declare a tool from a typed sync or async function.

    Args:
        effect: ``pure`` (depends on its arguments only), ``read`` or ``write``. Always given.
        idempotent: running the same call twice leaves the same state; default True for pure and read.
        timeout_s: seconds after which the call counts as failed.
        max_calls: calls allowed in one run.
        rate: ``dse.Rate`` or ``(calls, per_seconds)``.
        cost_usd: price of one call.
        approval: ``"always"`` or a ``dse.Approval``.
        concurrency: default ``parallel`` for pure and read, ``ordered`` for write.
        max_output_bytes: larger results are refused.
        sensitive: parameters or returned fields to redact in receipts and logs (``"return"``: all of it).
        revision: of the implementation; default a hash of its source and of what was put into it.

    Raises:
        ContractError: for a signature from which no complete contract follows, or an option that there is not.
    """
    if unknown:
        known = [name for name, one in inspect.signature(tool).parameters.items() if one.kind is one.KEYWORD_ONLY]
        raise ContractError("@dse.tool has no such option", value=", ".join(unknown),
                            remedy=f"Its options: {', '.join(known)}.")  # fmt: skip
    if fn is None:
        options = {k: v for k, v in locals().items() if k not in ("fn", "unknown")}
        return lambda function: tool(function, **options)
    if not callable(fn):
        raise ContractError("@dse.tool needs a function", value=repr(fn), remedy="Put it on a def or async def.")
    if effect not in get_args(Effect):
        raise ContractError("A tool's effect is one of pure, read, write", value=effect,
                            remedy='Declare it: @dse.tool(effect="read").')  # fmt: skip
    tool_name = name or fn.__name__
    check_name(tool_name)
    doc, arg_docs = _docstring(fn)
    params, context_parameter = _parameters(fn, tool_name, arg_docs)
    returns = _returns(fn, tool_name)
    contract = build_contract(
        name=tool_name, description=description or doc, params=params, returns=returns, effect=effect,
        idempotent=(effect != "write") if idempotent is None else idempotent, timeout_s=timeout_s, max_calls=max_calls,
        rate=_rate(rate, tool_name), cost_usd=cost_usd,
        approval=Approval(always=True) if approval == "always" else approval,
        concurrency=concurrency or ("ordered" if effect == "write" else "parallel"),
        max_output_bytes=max_output_bytes, sensitive=_names(sensitive, tool_name),
    )  # fmt: skip
    implemented = None if _is_declaration_only(fn) else fn
    made = Tool(contract, implemented, params, returns, context_parameter,
                revision or (source_revision(fn) if implemented else ""), _declared=fn,
                deps_type=_deps_type(fn, context_parameter))  # fmt: skip
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
        object.__setattr__(made, attribute, getattr(fn, attribute, None))
    return made


def _rate(rate: Any, tool_name: str) -> Any:
    if not isinstance(rate, (tuple, list)):
        return rate
    if len(rate) != 2:
        raise ContractError(f"The rate of tool {tool_name!r} is not two numbers", value=repr(rate),
                            remedy="Write rate=(calls, per_seconds), for example rate=(5, 60.0).")  # fmt: skip
    return Rate(calls=rate[0], per_s=rate[1])


def _names(sensitive: Any, tool_name: str) -> tuple[str, ...]:
    if isinstance(sensitive, str):  # its letters are names too
        raise ContractError(f"sensitive of tool {tool_name!r} is a text, not a list of names", value=sensitive,
                            remedy=f"Write sensitive=[{sensitive!r}].")  # fmt: skip
    return tuple(sensitive)


def build_contract(*, name: str, params: type[BaseModel], returns: TypeAdapter[Any], **policy: Any) -> ToolContract:
    try:
        parameters = schema_of(TypeAdapter(params), "validation")
        parameters.pop("description", None)
        parameters["additionalProperties"] = False
        result = schema_of(returns, "serialization")
    except (PydanticInvalidForJsonSchema, PydanticUserError) as exc:
        raise ContractError(f"Tool {name!r} uses a type that has no JSON form", value=_first_line(exc),
                            remedy="Use models, dataclasses, TypedDict (of typing_extensions before Python 3.12), Literal, Enum, list, dict and plain types.") from exc  # fmt: skip
    approval = policy.get("approval")
    if isinstance(approval, Approval) and approval.when:
        policy["approval"] = Approval(when=in_wire(name, approval.when, params, parameters))
    try:
        return ToolContract(name=name, parameters=parameters, returns=result, **policy)
    except ValueError as exc:
        raise ContractError(f"Tool {name!r} has an invalid policy", value=_first_line(exc),
                            remedy="Correct the arguments of @dse.tool.") from exc  # fmt: skip


def _first_line(exc: Exception) -> str:
    if isinstance(exc, ContractError):
        return str(exc)
    errors = getattr(exc, "errors", None)
    if callable(errors):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ") for e in errors())
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__


def _is_declaration_only(fn: Callable[..., Any]) -> bool:
    """True for a body of only a docstring, ``...`` or ``pass``."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return False
    trivial = {"RESUME", "RETURN_GENERATOR", "POP_TOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "NOP", "COPY_FREE_VARS",
               "CALL_INTRINSIC_1", "RERAISE", "CACHE"}  # fmt: skip
    ops = list(dis.get_instructions(code))
    loads = [op.argval for op in ops if op.opname in ("LOAD_CONST", "RETURN_CONST")]
    if not all(op.opname in trivial for op in ops) or any(value not in (None, Ellipsis) for value in loads):
        return False
    try:  # `return None` is an implementation, `...` is not; bytecode cannot tell them apart
        import ast

        tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError):
        return True
    return not any(isinstance(node, ast.Return) for node in ast.walk(tree))


def _docstring(fn: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description and the text of each argument from a Google-style ``Args:`` block."""
    text = inspect.getdoc(fn) or ""
    head, marker, tail = text.partition("\nArgs:\n")
    if not marker:
        return text.strip(), {}
    docs: dict[str, str] = {}
    current = ""
    lines = tail.splitlines()
    for index, line in enumerate(lines):
        if line and not line.startswith(" "):
            head += "\n" + "\n".join(lines[index:])
            break
        stripped = line.strip()
        key, colon, rest = stripped.partition(":")
        indent = len(line) - len(line.lstrip())
        if colon and indent <= 4 and key.split(" (")[0].isidentifier():
            current = key.split(" (")[0]
            docs[current] = rest.strip()
        elif current and stripped:
            docs[current] = f"{docs[current]} {stripped}"
    return head.strip(), docs


def _hints(fn: Callable[..., Any], tool_name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(fn, include_extras=True)
    except NameError as exc:
        raise ContractError(f"Tool {tool_name!r} has an annotation that cannot be resolved", value=str(exc),
                            remedy="Define or import that type at module level before the tool.") from exc  # fmt: skip


def _parameters(fn: Callable[..., Any], tool_name: str, docs: Mapping[str, str]) -> tuple[type[BaseModel], str | None]:
    hints = _hints(fn, tool_name)
    fields: dict[str, Any] = {}
    context_parameter: str | None = None
    for parameter in inspect.signature(fn).parameters.values():
        where = f"Parameter {parameter.name!r} of tool {tool_name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ContractError(f"{where} is variadic", value=str(parameter),
                                remedy="A contract names every argument: spell them out or take a list.")  # fmt: skip
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ContractError(f"{where} is positional-only", value=str(parameter),
                                remedy="Tools are called by name: remove the '/'.")  # fmt: skip
        if parameter.name not in hints:
            raise ContractError(f"{where} has no type annotation", value=str(parameter), remedy="Annotate it.")
        hint = hints[parameter.name]
        if _context(hint) is not None:
            if context_parameter:
                raise ContractError(f"{where} is a second context parameter", value=str(parameter), remedy="Keep one.")
            context_parameter = parameter.name
            continue
        if parameter.name.startswith("_"):
            raise ContractError(f"{where} starts with an underscore", value=parameter.name, remedy="Rename it.")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hint, default, docs.get(parameter.name, ""))
    stray = sorted(set(docs) - set(fields) - {context_parameter})
    if stray:
        raise ContractError(f"The docstring of tool {tool_name!r} describes parameters that it does not have",
                            value=", ".join(stray), remedy="Correct the names below 'Args:'.")  # fmt: skip
    try:
        made = make_model(tool_name, fields)
        _check_types(made, {f"Parameter {key!r} of tool {tool_name!r}": hint for key, (hint, *_) in fields.items()})
        return made, context_parameter
    except (PydanticSchemaGenerationError, PydanticUserError, NameError) as exc:
        raise ContractError(f"Tool {tool_name!r} has a parameter type that pydantic cannot handle", value=_first_line(exc),
                            remedy="Use models, dataclasses, TypedDict (of typing_extensions before Python 3.12), Literal, Enum, list, dict and plain types.") from exc  # fmt: skip


def _context(hint: Any) -> Any:
    """The ``ToolContext[...]`` that a parameter is annotated as, however it is put: optional, annotated, by another name."""
    origin = get_origin(hint)
    if hint is ToolContext or origin is ToolContext:
        return hint
    if origin is Annotated:
        return _context(get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        members = [one for one in get_args(hint) if one is not type(None)]
        return _context(members[0]) if len(members) == 1 else None
    if isinstance(hint, typing.NewType):
        return _context(hint.__supertype__)
    alias = hint if origin is None else origin  # `type Context = ToolContext[Shop]`, `type Context[D] = ToolContext[D]`
    if is_alias(alias):
        return _context(alias.__value__ if origin is None else alias.__value__[get_args(hint)])
    return None


def _check_types(made: type[BaseModel], hints: Mapping[str, Any]) -> None:
    """Refuse types that no call could fill in, or that would let the model fill in what is not its own.

    Raises:
        ContractError
    """
    whole = made.__pydantic_core_schema__
    if not holds(whole, ToolContext) and unreadable(whole, whole=True) is None:
        return
    for where, hint in hints.items():  # which of them it is
        core = TypeAdapter(hint).core_schema
        check_private(core, where)
        if problem := unreadable(core, whole=True):
            raise ContractError(f"{where} takes {problem[0]}", value=str(hint), remedy=problem[1])


def check_private(core: Any, where: str, error: type[UserError] = ContractError) -> None:
    """Refuse a type that holds a context: as data, anybody could make one up.

    Raises:
        UserError: `error`.
    """
    if holds(core, ToolContext):
        raise error(f"{where} has a type that holds a ToolContext, which is given by the run and is no data",
                    remedy="Annotate one parameter as dse.ToolContext, and nothing else with it.")  # fmt: skip


def _deps_type(fn: Callable[..., Any], context_parameter: str | None) -> str:
    if context_parameter is None:
        return ""
    wanted = get_args(_context(typing.get_type_hints(fn, include_extras=True)[context_parameter]))
    if not wanted or wanted[0] in (Any, object, None, type(None)) or isinstance(wanted[0], TypeVar):
        return ""
    if type(None) in get_args(wanted[0]):
        return ""
    return getattr(wanted[0], "__name__", None) or str(wanted[0])


def _returns(fn: Callable[..., Any], tool_name: str) -> TypeAdapter[Any]:
    hints = _hints(fn, tool_name)
    if "return" not in hints:
        raise ContractError(f"Tool {tool_name!r} has no return type", value=str(inspect.signature(fn)),
                            remedy="Annotate what it returns ('-> None' if nothing).")  # fmt: skip
    try:
        returns: TypeAdapter[Any] = TypeAdapter(hints["return"])
        check_private(returns.core_schema, f"What tool {tool_name!r} returns")
        return returns
    except (PydanticSchemaGenerationError, PydanticUserError) as exc:
        raise ContractError(f"Tool {tool_name!r} has a return type that pydantic cannot handle", value=_first_line(exc),
                            remedy="Use models, dataclasses, TypedDict (of typing_extensions before Python 3.12), Literal, Enum, list, dict and plain types.") from exc  # fmt: skip
