# SPDX-License-Identifier: Apache-2.0
"""Records of many fields that are given by name and stay as they are.

For type checkers they are frozen dataclasses; making the class takes a tenth of the time, since no code is made up for
it and compiled. A program that ends within a second has a use for the difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, dataclass_transform

if TYPE_CHECKING:
    from inspect import Signature


class _Fields:
    """What `inspect.signature` and help() show of a record: its fields, and not that any name may be given."""

    def __get__(self, _: object, owner: type) -> Signature:
        from inspect import Parameter, Signature

        return Signature([
            Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(owner, name, Parameter.empty), annotation=kind)
            for name, kind in owner.__annotations__.items()
        ])  # fmt: skip


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """Of a subclass, what is annotated is a field, and its value the default. `_check` is called in the end."""

    __signature__ = _Fields()

    def __init__(self, **given: Any) -> None:
        """Raises TypeError for a name that is no field."""
        unknown = given.keys() - type(self).__annotations__
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.__dict__.update(given)
        self._check()

    def _check(self) -> None:
        """Raise what is wrong with the values."""

    def replaced(self, **changes: Any) -> Self:
        """The same with other values of some fields."""
        return type(self)(**self.__dict__ | changes)

    def fields(self) -> dict[str, Any]:
        """The values by name, in the order of their definition."""
        return dict(zip(type(self).__annotations__, self._values(), strict=True))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} stays as it is: `replaced` makes another {type(self).__name__}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in type(self).__annotations__])
