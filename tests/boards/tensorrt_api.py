"""TensorRT's Python API of one version without any behaviour, made from tensorrt_api.txt.

What the real bindings do not have is not there: another name raises AttributeError, other arguments
raise TypeError, as pybind11 does.
"""

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

TABLE = Path(__file__).with_name("tensorrt_api.txt")
VALUES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}  # module's value -> DataType
_ARGUMENT = re.compile(r"(\w+): ([^=]+?)(?: = (.+))?$")


@dataclass(frozen=True)
class Signature:
    """The arguments of one overload, without `self`: name, type, and whether it may be left out."""

    arguments: tuple[tuple[str, str, bool], ...]
    result: str


@dataclass
class ClassApi:
    """A class: its base, its enum members, signatures by method, and properties."""

    base: str = ""
    members: dict[str, int] = field(default_factory=dict)
    methods: dict[str, list[Signature]] = field(default_factory=dict)
    properties: dict[str, tuple[str, bool]] = field(default_factory=dict)


class NoSuchCall(TypeError):
    """Arguments that the real bindings do not take."""


@cache
def read_table() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The versions, and (marks, row) of each line."""
    head, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = tuple((line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines)
    return tuple(head.removeprefix("# ").split(";")[0].split()), rows


@cache
def read_api(column: int) -> dict[str, ClassApi]:
    """The classes of one of the table's versions."""
    classes: dict[str, ClassApi] = {}
    for marks, row in read_table()[1]:
        if marks[column] != "x":
            continue
        name = re.match(r"[\w.]+", row)
        assert name is not None
        owner, _, last = name[0].rpartition(".")
        rest = row[name.end() :]
        if rest == " class":
            classes.setdefault(name[0], ClassApi())
        elif rest.startswith(" = "):
            classes.setdefault(owner, ClassApi()).members[last] = int(rest[3:])
        elif rest.startswith(" base "):
            classes.setdefault(name[0], ClassApi()).base = rest[6:]
        elif rest.startswith(": "):
            kind, *settable = rest[2:].split(", ")
            classes.setdefault(owner, ClassApi()).properties[last] = (kind, bool(settable))
        elif rest.startswith("(") and owner:
            made = classes.setdefault(owner, ClassApi()).methods
            made.setdefault(last, []).append(_signature(rest))
    return classes


def _signature(text: str) -> Signature:
    if " -> " not in text:
        return Signature((), "object")
    inner, result = text[1:].rsplit(") -> ", 1)
    parts = [part for part in re.split(r", (?![^\[]*\])", inner) if not part.startswith("self: ")]
    matches = [_ARGUMENT.match(part) for part in parts]
    return Signature(tuple((m[1], m[2], m[3] is not None) for m in matches if m), result)


class _Meta(type):
    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        made = super().__call__(*args, **keywords)
        if "_made" not in vars(made):  # pybind11's words
            raise TypeError(
                f"{cls.__mro__[1].__name__}.__init__() must be called when overriding __init__"
            )
        return made


class ApiObject(metaclass=_Meta):
    """The base of all classes of the module; attributes that the class does not have are refused."""

    _own = True  # of the module, not derived from it in Python

    def __setattr__(self, name: str, value: Any) -> None:
        known = isinstance(getattr(type(self), name, None), property)
        if vars(type(self)).get("_own") and not known and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


Behaviour = Callable[[str], Callable[..., Any] | None]
Record = Callable[[Any, str, dict[str, Any]], None]


def make_module(column: int, behaviour: Behaviour, record: Record) -> ModuleType:
    """The module `tensorrt` of one of the table's versions.

    Args:
        column: The version's place in the table.
        behaviour: Gives the function behind "Class.method", or None.
        record: Is told every call and every attribute that is set.
    """
    module, api = ModuleType("tensorrt"), read_api(column)
    for name, one in api.items():
        if one.members:
            made: Any = enum.Enum(name.split(".")[-1], one.members, type=_Integer)
        elif "." in name:
            continue
        else:
            made = _make_class(name, one, module, behaviour, record)
        owner, _, last = name.rpartition(".")
        setattr(getattr(module, owner) if owner else module, last, made)
    for marks, row in read_table()[1]:
        if row.endswith(" value") and marks[column] == "x":
            name = row.removesuffix(" value")
            member = VALUES.get(name, name.upper())
            setattr(module, name, getattr(module.DataType, member))
    return module


class _Integer:
    """pybind11's enums have a number, and are none."""

    value: int

    def __int__(self) -> int:
        return self.value

    __index__ = __int__


def _make_class(
    name: str, one: ClassApi, module: ModuleType, behaviour: Behaviour, record: Record
) -> type:
    body: dict[str, Any] = {"_own": True}
    for method, signatures in one.methods.items():
        body[method] = _method(f"{name}.{method}", signatures, module, behaviour, record)
    if "__init__" not in one.methods:
        body["__init__"] = _no_constructor(name)
    for prop, (kind, settable) in one.properties.items():
        body[prop] = _property(f"{name}.{prop}", kind, settable, module, behaviour, record)
    base = getattr(module, one.base, ApiObject) if one.base else ApiObject
    return _Meta(name, (base,), body)


def _no_constructor(name: str) -> Callable[..., None]:
    def refuse(self: Any, *args: Any, **keywords: Any) -> None:
        raise TypeError(f"{name}: No constructor defined!")

    return refuse


def _method(
    path: str,
    signatures: list[Signature],
    module: ModuleType,
    behaviour: Behaviour,
    record: Record,
) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **keywords: Any) -> Any:
        values = next(filter(None, _bound(signatures, args, keywords, module)), None)
        if values is None:
            raise NoSuchCall(
                f"{path}(): incompatible function arguments: {args} {keywords}; supported:"
                f" {signatures}"
            )
        values.pop("", None)
        if path.endswith(".__init__"):
            object.__setattr__(self, "_made", True)
        record(self, path, values)
        does = behaviour(path)
        if does is None and not path.endswith(".__init__"):
            raise NotImplementedError(f"the double has no {path}")
        return does(self, **values) if does else None

    return call


def _bound(
    signatures: list[Signature], args: tuple[Any, ...], keywords: dict[str, Any], module: ModuleType
) -> Iterator[dict[str, Any]]:
    """The arguments by name, for each overload that takes them; never empty."""
    for signature in signatures:
        names = [name for name, _, _ in signature.arguments]
        if len(args) > len(names) or set(keywords) - set(names[len(args) :]):
            continue
        given = {**dict(zip(names, args, strict=False)), **keywords}
        if all(
            (name in given and fits(kind, given[name], module)) or (name not in given and left_out)
            for name, kind, left_out in signature.arguments
        ):
            yield {"": None, **given}


def fits(kind: str, value: Any, module: ModuleType) -> bool:
    """Whether pybind11 would take a value for an argument of that type."""
    if kind == "int":
        return hasattr(value, "__index__") and not isinstance(value, enum.Enum)
    if kind in ("float", "str", "bool"):
        return isinstance(value, {"float": (int, float), "str": str, "bool": bool}[kind])
    if kind == "buffer":
        return isinstance(value, bytes | bytearray | memoryview | module.IHostMemory)
    if kind == "Dims" and isinstance(value, list | tuple):
        return all(fits("int", size, module) for size in value)
    if kind.startswith("List["):
        return isinstance(value, list | tuple)
    named: Any = module
    for part in kind.split("."):
        named = getattr(named, part, None)
    if isinstance(named, type) and issubclass(named, enum.Enum):
        return isinstance(value, named)
    return named is None or value is None or isinstance(value, named)


def _property(
    path: str,
    kind: str,
    settable: bool,
    module: ModuleType,
    behaviour: Behaviour,
    record: Record,
) -> property:
    key = f"_{path}"

    def get(self: Any) -> Any:
        if key in vars(self):
            return vars(self)[key]
        does = behaviour(path)
        if does is None:
            raise NotImplementedError(f"the double has no {path}")
        return does(self)

    def put(self: Any, value: Any) -> None:
        if not fits(kind, value, module):
            raise NoSuchCall(f"{path}: incompatible type {type(value).__name__}, it takes {kind}")
        record(self, f"{path} =", {"": value})
        vars(self)[key] = value

    return property(get, put if settable else None)
