"""Guest source for parts of the standard library that the interpreter lacks.

Rewriting says what a piece of code needs, and a session feeds each need once, before the code and in a feed of
its own: line numbers stay those of the author. A need is a module (``json``), a name of a module
(``collections.Counter``) or a shim (``dse_x_statistics``). Everything runs in the guest, so it works inside
``key=`` too.
"""

from __future__ import annotations

import re
from functools import cache

from dse.runtime.sandbox.shim_source import SOURCES

__all__ = ["MODULES", "PREFIX", "PROVIDED", "provided", "source_of"]

PREFIX = "dse_x_"

# Modules that only exist as shims: `import X` becomes an assignment.
MODULES = frozenset({"statistics", "heapq", "operator", "string", "calendar", "textwrap", "contextlib"})

# Names that a shim adds to a module that the interpreter has.
PROVIDED: dict[str, frozenset[str]] = {
    "asyncio": frozenset(
        {"TimeoutError", "CancelledError", "create_task", "ensure_future", "shield", "wait_for", "as_completed",
         "to_thread", "Semaphore", "BoundedSemaphore", "timeout"}
    ),
    "dataclasses": frozenset({"is_dataclass", "asdict", "astuple", "replace"}),
    "collections": frozenset({"OrderedDict"}),
    "functools": frozenset({"wraps"}),
}  # fmt: skip

# Modules and names that code may use without importing them. Attributes say that the module is meant, not a
# variable of the same name.
AUTO_MODULES: dict[str, frozenset[str]] = {
    "json": frozenset({"dumps", "loads"}),
    "math": frozenset(
        {"ceil", "floor", "sqrt", "log", "log2", "log10", "exp", "pow", "pi", "inf", "nan", "isnan", "isinf",
         "isclose", "fsum", "prod", "comb", "perm", "gcd", "lcm", "hypot", "trunc", "factorial"}
    ),
    "re": frozenset(
        {"search", "match", "fullmatch", "findall", "finditer", "sub", "split", "compile", "escape", "IGNORECASE",
         "I", "MULTILINE", "DOTALL"}
    ),
    "itertools": frozenset({"groupby", "chain", "combinations", "permutations", "product", "accumulate", "islice"}),
    "functools": frozenset({"reduce", "partial", "lru_cache", "cache"}),
    "collections": frozenset({"Counter", "defaultdict", "deque", "namedtuple"}),
    "random": frozenset({"random", "randint", "choice", "choices", "sample", "shuffle", "uniform", "seed"}),
    "datetime": frozenset({"datetime", "timedelta", "timezone"}),
}  # fmt: skip
AUTO_NAMES = {
    "Counter": "collections.Counter", "defaultdict": "collections.defaultdict", "deque": "collections.deque",
    "dataclass": "dataclasses.dataclass", "timedelta": "datetime.timedelta", "Decimal": "decimal.Decimal",
    "groupby": "itertools.groupby", "combinations": "itertools.combinations", "reduce": "functools.reduce",
}  # fmt: skip


@cache
def provided(module: str) -> frozenset[str]:
    """Public names of a shim namespace."""
    source = SOURCES[module]
    body = source[source.index(f"class {PREFIX}{module}:") :]
    return frozenset(re.findall(r"^    (?:async )?(?:def )?([a-zA-Z]\w*)(?: =|\()", body, re.MULTILINE))


def source_of(need: str) -> str:
    """Guest code that provides a need.

    Raises:
        ValueError: it is none that rewriting gives.
    """
    if not (need in AUTO_MODULES or need in AUTO_NAMES.values() or need.removeprefix(PREFIX) in SOURCES):
        raise ValueError(f"no such shim: {need!r}")
    if need.startswith(PREFIX):
        return SOURCES[need.removeprefix(PREFIX)]
    module, _, name = need.partition(".")
    return f"from {module} import {name}" if name else f"import {module}"
