"""What a run could not write: said once, and no reason to stop training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Losses:
    """Notes what cannot be written.

    Attributes:
        missing: what is not there, and why; what was written later after all is not in it.
    """

    def __init__(self, console: Console) -> None:
        self.missing: dict[str, str] = {}
        self._console = console
        self._said: set[str] = set()

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """The block writes `what`. If it fails, that is said, once, and goes no further."""
        try:
            yield
        except Exception as error:
            self.missing[what] = str(getattr(error, "strerror", None) or error or type(error).__name__)
            if what not in self._said:
                self._said.add(what)
                self.say(f"{what} cannot be written ({self.missing[what]}): training goes on without.")
        else:
            self.missing.pop(what, None)

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
