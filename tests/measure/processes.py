"""Cases that need several processes: one launch runs many, each with a verdict of its own."""

from __future__ import annotations

import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.multiprocessing

Case = Callable[[Path], None]


def verdicts(cases: Sequence[Case], size: int, folder: Path, timeout: float = 300) -> dict[str, str]:
    """Run `cases` in `size` processes (gloo, CPU), one after the other.

    Returns:
        By the case's name "", or the traceback of each rank on which it failed.
    """
    # The server has imported torch once; processes that it forks start at once.
    torch.multiprocessing.set_forkserver_preload(["torch", "numpy", "numba", "torch.distributed.fsdp"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    running = torch.multiprocessing.start_processes(
        _process, (list(cases), size, port, folder), size, join=False, start_method="forkserver"
    )
    deadline, end = time.monotonic() + timeout, ""
    try:
        while not running.join(timeout=1):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{size} processes were not done after {timeout} s")
    except Exception as error:
        end = f"never ended: {error}"
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()

    def verdict(case: Case, rank: int) -> str:
        path = folder / f"{case.__name__}.{rank}"
        text = path.read_text() if path.exists() else end
        return f"rank {rank}:\n{text}\n" if text else ""

    return {case.__name__: "".join(verdict(case, rank) for rank in range(size)) for case in cases}


def _process(rank: int, cases: Sequence[Case], size: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # A case that fails on one rank only must not hold up the others for long.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
    for case in cases:
        text = ""
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", category=FutureWarning)
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                warnings.filterwarnings("ignore", message="(?!rwc_wandb)")
                case(folder)
        except Exception:
            text = traceback.format_exc()
        (folder / f"{case.__name__}.{rank}").write_text(text)
        distributed.barrier()
    distributed.destroy_process_group()
