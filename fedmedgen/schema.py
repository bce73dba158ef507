"""Frozen dataclasses from mappings: types checked, unknown keys refused with the nearest known one."""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from fedmedgen.errors import SettingsError

T = TypeVar("T")


def require(good: bool, name: str, value: object, expected: str) -> None:
    """Refuse a bad value in words: what was expected and what came."""
    if not good:
        raise SettingsError(f"{name} must be {expected}; got {value!r}")


def positive(section: str, settings: object, *names: str) -> None:
    """Refuse any of the named settings that is not above zero."""
    for name in names:
        require(getattr(settings, name) > 0, f"{section}.{name}", getattr(settings, name), "above 0")


def plain(value: Any) -> Any:
    """The value with tuples turned into lists, all the way down."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def nearest(key: str, known: list[str]) -> str:
    """The words ' (did you mean …?)' for the known key closest to `key`, or nothing."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def from_mapping(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """Build the frozen dataclass `cls` from a mapping.

    **Raises** `SettingsError` for an unknown key (naming the nearest), a wrong type or a value out of range.
    """
    if not isinstance(mapping, Mapping):
        raise SettingsError(f"{path or 'settings'} must be a group of settings; got {mapping!r}")
    hints = typing.get_type_hints(cls)
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    values = {}
    for key, value in mapping.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise SettingsError(f"unknown setting {full!r}{nearest(str(key), known)}")
        values[key] = _convert(hints[key], value, full)
    missing = [item.name for item in fields(cls) if _required(item) and item.name not in values]  # type: ignore[arg-type]
    if missing:
        raise SettingsError(f"{path or 'settings'} must set {', '.join(missing)}")
    return cls(**values)


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, path)
    if origin is Literal:
        choices = typing.get_args(hint)
        require(
            value in choices, path, value, "one of " + ", ".join(map(str, choices)) + nearest(str(value), list(choices))
        )
        return value
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        require(isinstance(value, (list, tuple)), path, value, "a list")
        return tuple(_convert(inner, item, path) for item in value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(typing.get_args(hint)[0], value, path)
    return _scalar(hint, value, path)


def _scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    good = isinstance(value, hint) and not (hint is not bool and isinstance(value, bool))
    require(good, path, value, {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint])
    if hint is float:
        require(value == value and abs(value) != float("inf"), path, value, "a finite number")
    return value
