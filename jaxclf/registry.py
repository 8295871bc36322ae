"""Names of backbones, heads and data sets: this package's own, those of installed packages, and package.module:Name."""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from jaxclf.errors import UsageError, unknown

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Registry(Generic[T]):
    """All entries of one kind, by name.

    A name is one of `own`, that of an entry point in `group` of any installed package, or package.module:Name, which is
    imported. Entry points that repeat one of `own` are not used.
    """

    kind: str
    """Word for an entry in errors, as "backbone"."""
    group: str
    """Group of entry points."""
    own: Mapping[str, T]
    entry: Callable[[Any], T]
    """Turns what an entry point or package.module:Name gives into an entry; raises `TypeError` that says why not."""

    def names(self) -> list[str]:
        """List our own names, then those of entry points."""
        return list(dict.fromkeys([*self.own, *(point.name for point in self._points())]))

    def resolve(self, name: str) -> T:
        """Return the entry of a name. Raises `UsageError` for a name that is unknown or gives no such entry."""
        if name in self.own:
            return self.own[name]
        found = next((point for point in self._points() if point.name == name), None)
        if found is None and ":" not in name:
            raise unknown(self.kind, name, self.names())
        try:
            return self.entry(_imported(self.kind, name, found.value if found else name))
        except TypeError as error:
            raise UsageError(f"{self.kind} {name!r} cannot be used: {error}") from error

    def _points(self) -> importlib.metadata.EntryPoints:
        return importlib.metadata.entry_points(group=self.group)


def _imported(kind: str, name: str, path: str) -> Any:
    """Return the object at package.module:Name; errors inside the module are the module's own."""
    module, _, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        where = "the current directory or PYTHONPATH must hold it"
        raise UsageError(f"{kind} {name!r}: there is no module {error.name!r}; {where}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise UsageError(f"{kind} {name!r}: {module!r} has no {attributes!r}")
        found = getattr(found, attribute)
    return found
