# SPDX-License-Identifier: Apache-2.0
"""Immutable records with many keyword fields.

Type checkers see them as frozen dataclasses. Creating the class takes a tenth of the time, since no code is generated
and compiled for it, which matters to a program that ends within a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, dataclass_transform

if TYPE_CHECKING:
    from inspect import Signature


class _Fields:
    """Makes `inspect.signature` and help() show a record's fields instead of arbitrary keyword arguments."""

    def __get__(self, _: object, owner: type) -> Signature:
        from inspect import Parameter, Signature

        return Signature([
            Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(owner, name, Parameter.empty), annotation=kind)
            for name, kind in owner.__annotations__.items()
        ])  # fmt: skip


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """In a subclass, annotated names are fields, and their values are the defaults. `_check` is called last."""

    __signature__ = _Fields()

    def __init__(self, **given: Any) -> None:
        """Raises TypeError for a name that is not a field."""
        unknown = given.keys() - type(self).__annotations__
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.__dict__.update(given)
        self._check()

    def _check(self) -> None:
        """Raise an error if the values are invalid."""

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**self.__dict__ | changes)

    def fields(self) -> dict[str, Any]:
        """Return the values by name, in the order of definition."""
        return dict(zip(type(self).__annotations__, self._values(), strict=True))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} stays as it is: `replaced` makes another {type(self).__name__}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in type(self).__annotations__])
