"""Work beside the training, also where the interpreter starts no thread any more."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker(threading.Thread):
    """Does `work(*arguments)` in a thread that holds up no end of the process.

    Python 3.12.0 to 3.12.2 start no thread within `atexit`, where the monitor of a script that just ends is closed:
    there `start` does the work itself, and returns when it is done.
    """

    def __init__(self, work: Callable[..., object], *arguments: object) -> None:
        super().__init__(target=work, args=arguments, daemon=True)

    def start(self) -> None:
        try:
            super().start()
        except RuntimeError as error:
            if "interpreter shutdown" not in str(error):
                raise
            self.run()

    def join(self, timeout: float | None = None) -> None:
        if self.ident is not None:
            super().join(timeout)
