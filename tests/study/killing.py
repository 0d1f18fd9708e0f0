"""Runs `rwc-wandb ARGUMENTS...` and dies by SIGKILL at a chosen moment.

python tests/study/killing.py before|after MODULE.FUNCTION COUNT train ...: at the function's call number COUNT
"""

import importlib
import os
import signal
import sys
from typing import Any

from rwc_wandb import cli


def main(when: str, name: str, count: int, words: list[str]) -> int:
    owner_name, _, function_name = name.rpartition(".")
    try:
        owner: Any = importlib.import_module(owner_name)
    except ModuleNotFoundError:  # A method
        module_name, _, class_name = owner_name.rpartition(".")
        owner = getattr(importlib.import_module(module_name), class_name)
    function, calls = getattr(owner, function_name), 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls == count and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, function_name, deadly)
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
