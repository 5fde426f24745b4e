"""A property that is computed once.

functools.cached_property holds one lock for all objects of a class while it computes, up to Python 3.11: of all threads that
decode, one would work. This one holds none; two threads that ask one object at once may both compute.
"""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class lazy(Generic[T]):
    """`@lazy` on a method without arguments: its value lies in the object's `__dict__` from then on."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, found: None, owner: type) -> Self: ...

    @overload
    def __get__(self, found: object, owner: type) -> T: ...

    def __get__(self, found: object | None, owner: type) -> T | Self:
        if found is None:
            return self
        value = found.__dict__[self.name] = self.compute(found)
        return value
