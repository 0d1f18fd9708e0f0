"""`rwc-wandb run train.py ARGS...`: the user's script, unchanged, with every optimizer watched."""

from __future__ import annotations

import argparse
import builtins
import os
import re
import runpy
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType

from rwc_wandb.errors import UserError
from rwc_wandb.launch.finding import Finder
from rwc_wandb.options import COUNT, SAMPLE, optional


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [OPTIONS] train.py ARGS...\n       {parser.prog} [OPTIONS] -m MODULE ARGS..."
    parser.add_argument("--every", type=_steps, default=1, help="optimizer steps between measurements (default: 1)")
    parser.add_argument("--log-every", type=_steps, default=50, help="measurements per row in W&B (default: 50)")
    parser.add_argument(
        "--histogram-every",
        type=_steps_or_none,
        default=1000,
        help='steps between histograms, or "none" (default: 1000)',
    )
    parser.add_argument(
        "--layers", type=_layers, default="weights", help='"weights" (default), "all", or a regular expression'
    )
    parser.add_argument(
        "--sample",
        type=_weights_or_none,
        help="measure layers with more than so many weights from a random sample of as many (default: all weights)",
    )
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module, as python -m does")
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="script", help="a script, or with -m a module, and its own arguments"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the script as python would; its exceptions and exit codes are this command's own.

    Raises:
        UserError: there is no such script.
        SystemExit, KeyboardInterrupt: the script's.
    """
    words: list[str] = arguments.words
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise UserError(
            "run takes the path of a script, or -m and the name of a module; then the script's own arguments."
        )
    script = words[0]
    if not arguments.is_module and not Path(script).is_file():
        raise UserError(
            f"{script!r}: there is no such file; give the path of a script, or -m and the name of a module."
        )
    sys.argv = list(words)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd() if arguments.is_module else str(Path(script).resolve().parent)
    if arguments.is_module and not _is_module(script):
        raise UserError(f"-m {script}: python finds no such module to run; for a file give its path, without -m.")
    finder = Finder(
        every=arguments.every,
        log_every=arguments.log_every,
        histogram_every=arguments.histogram_every,
        layers=arguments.layers,
        sample=arguments.sample,
    )
    exit_code = 1
    try:
        if arguments.is_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            _run_file(script)
        exit_code = 0
    except SystemExit as leaving:
        exit_code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    except KeyboardInterrupt as error:
        _show_only(error, _of_the_script(error.__traceback__))
        raise
    except Exception as error:
        # As python ends a script: its W&B run learns from the hook that it failed, what runs at exit from `last_value`.
        error.__traceback__ = _of_the_script(error.__traceback__)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        finder.close()
        finder.finish_own_run(exit_code)
    return exit_code


def _is_module(name: str) -> bool:
    """Whether `python -m name` would find something; what is wrong inside of it is the script's own affair."""
    if name.startswith("."):
        return False
    try:
        found = find_spec(name)
        if found is not None and found.submodule_search_locations is not None:
            found = find_spec(f"{name}.__main__")
    except ValueError:
        return False
    except ModuleNotFoundError as error:
        return not f"{name}.".startswith(f"{error.name}.")
    except Exception:
        return True
    return found is not None


def _run_file(script: str) -> None:
    """As `python script` does; `runpy.run_path` would change `sys.argv[0]`, and forget `__main__` at the end."""
    path = os.path.abspath(script)
    loader = SourceFileLoader("__main__", path)
    main = ModuleType("__main__")
    vars(main).update(__file__=path, __loader__=loader, __builtins__=builtins, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = main
    exec(compile(loader.get_data(path), path, "exec", dont_inherit=True), vars(main))


def _of_the_script(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of the machinery that it begins with."""
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        traceback = traceback.tb_next
    return traceback


def _show_only(error: BaseException, traceback: TracebackType | None) -> None:
    """Have python, which ends by this error, print only this traceback of it."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], raised: BaseException, all_frames: TracebackType | None) -> None:
        shown = traceback if raised is error else all_frames
        # Python prints the traceback that the error has, not the one that the hook is given.
        previous(kind, raised.with_traceback(shown), shown)

    sys.excepthook = hook


def _steps(word: str) -> int:
    if not word.isdecimal() or not COUNT.fits(int(word)):
        raise argparse.ArgumentTypeError(f"{word!r} is no {COUNT.takes.removeprefix('a ')}")
    return int(word)


def _steps_or_none(word: str) -> int | None:
    return None if word == "none" else _steps(word)


def _weights_or_none(word: str) -> int | None:
    kind = optional(SAMPLE)
    try:
        count: int | None = kind.parse(word)
    except ValueError:
        count = 0
    if not kind.fits(count):
        raise argparse.ArgumentTypeError(
            f'{word!r} is no whole number of weights from 2 to below 2^30, nor "none" for all of them'
        )
    return count


def _layers(word: str) -> str:
    try:
        re.compile(word)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no regular expression ({error})") from None
    return word
