"""Settings of optimizers: attributes that are checked when they are set, and that each step reads once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, overload

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FixedSetting", "HasSettings", "Setting", "settings_of"]


class HasSettings(Protocol):
    """An optimizer, as far as settings know it."""

    #: The values of the settings by their names.
    _settings: dict[str, Any]


class Setting:
    """An attribute of optimizers that can be set between steps.

    The values of all settings are in one dict of the optimizer, `_settings`. An assignment checks the value,
    and then replaces it in the dict by one operation, which neither a signal handler nor another thread can
    find half done. A step reads a copy of the dict, so that assignments during the step take effect in the
    next one.

    Parameters
    ----------
    check : callable
        Called as ``check(value, name)``. Returns the value to keep, or raises TypeError or ValueError.
    doc : str, optional
        The docstring of the attribute.
    """

    def __init__(
        self, check: Callable[[Any, str], Any] = lambda value, name: value, doc: str | None = None
    ) -> None:
        self.check = check
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        if self.__doc__ is None:
            self.__doc__ = f"The argument `{name}` of the constructor, which can be set between steps."

    @overload
    def __get__(self, optimizer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, optimizer: HasSettings, owner: type) -> Any: ...
    def __get__(self, optimizer: HasSettings | None, owner: type) -> Any:
        if optimizer is None:
            return self
        try:
            return optimizer._settings[self.name]
        except KeyError:
            raise AttributeError(f"{self.name} is not set: the constructor was not called") from None

    def __set__(self, optimizer: HasSettings, value: Any) -> None:
        optimizer._settings[self.name] = self.check(value, self.name)

    def __delete__(self, optimizer: HasSettings) -> None:
        raise AttributeError(f"{self.name} can be set, but not deleted")


class FixedSetting(Setting):
    """An attribute of optimizers that can be read, and that is set by the constructor alone."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.__doc__ = f"The argument `{name}` of the constructor, which cannot be changed afterwards."
        super().__set_name__(owner, name)

    def __set__(self, optimizer: HasSettings, value: Any) -> None:
        if self.name in optimizer._settings:
            raise AttributeError(
                f"{self.name} is fixed when a {type(optimizer).__name__} is created; make another optimizer"
            )
        super().__set__(optimizer, value)


def settings_of(optimizer_class: type) -> dict[str, Setting]:
    """Return the settings of a class by their names: those of its base classes first, each in their order."""
    return {
        name: value
        for each in optimizer_class.__mro__[::-1]
        for name, value in vars(each).items()
        if isinstance(value, Setting)
    }
