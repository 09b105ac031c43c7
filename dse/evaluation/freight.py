"""What a worker needs of a task: signature, toolbox, dependencies, environment and checks, as bytes.

What can be imported goes by its name: the worker imports the same module, whose state is then the worker's own. The rest
goes by value. Dataset and metric stay with the driver: no worker can see a sealed row that it does not run.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pickle
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dse.contracts.check import Check
from dse.contracts.tool import Tool
from dse.contracts.toolbox import Toolbox
from dse.errors import UserError
from dse.evaluation.environment import Environment

__all__ = ["Freight", "pack", "unpack"]


@dataclass(frozen=True)
class Freight:
    """A task without its data. ``tools``: the signature's own as None, in the toolbox's order."""

    signature: Any
    tools: dict[str, Tool | None]
    rules: dict[str, Any]
    deps: Any
    environment: Environment | None
    checks: tuple[Check, ...] = ()

    @classmethod
    def of(cls, signature: Any, toolbox: Toolbox, deps: Any, environment: Environment | None,
           checks: Iterable[Check] = ()) -> Freight:  # fmt: skip
        own = {tool.name: tool for tool in signature.spec().tools}
        tools = {tool.name: None if own.get(tool.name) is tool else tool for tool in toolbox}
        return cls(signature, tools, dict(toolbox.rules), deps, environment, tuple(checks))

    def toolbox(self) -> Toolbox:
        own = {tool.name: tool for tool in self.signature.spec().tools}
        return Toolbox([own[name] if tool is None else tool for name, tool in self.tools.items()], rules=self.rules)


def pack(freight: Freight) -> bytes:
    """
    Raises:
        UserError: something in it cannot be sent to another process.
    """
    from ray.cloudpickle import CloudPickler

    class Pickler(CloudPickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, (Tool, Environment, Check)):
                return _name_of(value)
            script = isinstance(value, (type, types.FunctionType)) and value.__module__ == "__main__"
            return _name_of(value) if script else None  # all else that has a name is named by cloudpickle

    if _name_of(freight.signature) is None:
        raise UserError("A task cannot be sent to workers", value=f"signature {freight.signature.__qualname__}",
                        remedy="Declare the signature at the top of a module or script that workers can import.")  # fmt: skip
    file = io.BytesIO()
    try:
        pickler = Pickler(file)
        pickler.dump([path for path in sys.path if os.path.isdir(path)])
        pickler.dump(freight)
    except Exception as exc:
        raise UserError("A task cannot be sent to workers", value=f"{type(exc).__name__}: {exc}",
                        remedy="Declare its tools, checks and environment at the top of a module that workers can import, and give "
                               "deps= that can be pickled.") from exc  # fmt: skip
    return file.getvalue()


def unpack(data: bytes) -> Freight:
    """
    Raises:
        UserError: a module cannot be imported here.
    """

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, name: Any) -> Any:
            return _found(*name)

    unpickler = Unpickler(io.BytesIO(data))
    try:
        # On one machine a worker finds what its driver finds; elsewhere these folders may not exist.
        sys.path.extend(path for path in unpickler.load() if path not in sys.path and os.path.isdir(path))
        freight: Freight = unpickler.load()
    except Exception as exc:
        raise UserError("A worker cannot load the task", value=f"{type(exc).__name__}: {exc}",
                        remedy="Install its modules on every machine of the cluster, for example with Ray's "
                               "runtime_env.") from exc  # fmt: skip
    return freight


def _name_of(value: Any) -> tuple[str, str] | None:
    """Where it can be imported from, by which module and which name in it."""
    made_of = value.factory if isinstance(value, Environment) else value.fn if isinstance(value, Check) else value
    module, name = getattr(made_of, "__module__", None), getattr(made_of, "__qualname__", None)
    if not module or not name or module not in sys.modules:
        return None
    try:
        if _found(module, name) is not value:
            return None
    except AttributeError:
        return None
    if module != "__main__":
        return module, name
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None and main.__spec__ is not None:  # python -m
        return main.__spec__.name, name
    file = getattr(main, "__file__", None)
    return (f"{_SCRIPT}{os.path.abspath(file)}", name) if file else None


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or (_script(module) if module.startswith(_SCRIPT) else importlib.import_module(module))
    for part in name.split("."):
        found = getattr(found, part)
    return found


_SCRIPT = "dse_main:"


def _script(module: str) -> Any:
    """The script that the driver runs, as a module of another name: what it guards by its name is not executed."""
    spec = importlib.util.spec_from_file_location(module, module.removeprefix(_SCRIPT))
    assert spec is not None and spec.loader is not None
    made = sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[module]
        raise
    return made
