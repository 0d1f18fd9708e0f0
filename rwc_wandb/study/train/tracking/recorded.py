"""Stands between a training and its W&B run: every row is kept in a file of ours before W&B gets it.

While W&B's process is slow, rows are recorded all the same, and sent when it has caught up. So a checkpoint knows by
the record's size which rows are behind it.

A kill of the training loses what W&B's client had not uploaded (15 s), or had not written to its own file where the run
is offline; a kill of W&B's process loses all that follows. What a resumed training has to send is therefore decided
anew, from the rows on record and from what is there:

* online, W&B's server tells which epochs and optimizer steps it has; the other rows are sent, in order;
* offline, the new `wandb/offline-run-*` gets all rows, and those of the killed trainings, which would bring rows twice,
  are renamed to `wandb/replaced-offline-run-*`: one `wandb sync` of the one folder brings the whole run;
* offline after a part that was online or has been synced, what the server has is not known: only rows that are new are
  logged, and the record is kept, so that `--resume` with a server fills in the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import wandb

from rwc_wandb.log.budget import cause_of, has_ended
from rwc_wandb.log.outbox import Row
from rwc_wandb.log.runs.watched_run import watched
from rwc_wandb.study.train.tracking.arrived import Arrived
from rwc_wandb.study.train.tracking.backlog import Backlog
from rwc_wandb.study.train.tracking.rows_file import RowsFile

if TYPE_CHECKING:
    from wandb import Run

OFFLINE, REPLACED = "offline-run-", "replaced-offline-run-"


class RecordedRun:
    """A W&B run whose rows are on record, and that never raises for what W&B cannot take: it says so once.

    Args:
        run: the W&B run; all that is not here is asked of it.
        file: where rows are recorded.
        say: gets the sentence about a failure.

    Attributes:
        itself: the W&B run, which tables are bound to.
        backlog: rows on record that W&B's process could not take yet. Recording them waits for nothing.
        failure: why W&B takes no more; "" while it does.
        is_complete: whether W&B has, or will have by `wandb sync` of its folder, every row on record.
    """

    def __init__(self, run: Run, file: RowsFile, say: Callable[[str], None]) -> None:
        self.itself = run
        self._file = file
        self._say = say
        self._arrived = Arrived()
        self._pending: Row = {}
        self._local_step = 0
        """By this attribute of W&B's runs `RunRows` knows that a row was committed."""
        self.backlog = Backlog(run, self._send)
        watched(cast("Run", self)).row_flow = self.backlog
        self.failure = ""
        self.is_complete = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.itself, name)

    def go_on(self, size: int, layer: str) -> None:
        """Take up the run: forget the rows behind the first `size` bytes, which the training logs again, and send what
        W&B lacks of the others. `layer` is one of the layers in every row; a `size` that the record does not have
        belongs to a run without one."""
        replaced: list[Path] = []
        is_whole = 0 <= size <= self._file.size
        try:
            if self.itself.offline:
                earlier = self._earlier_folders()
                if is_whole and all(_is_unsynced(folder) for folder in earlier):
                    replaced = earlier
                else:
                    self.is_complete = False
                    for row in self._file.rows():
                        self._arrived.add(row)
            elif not self.itself.disabled:
                self._arrived.ask(self.itself, layer)
        except Exception as error:
            self._fail(error)
        self._file.cut(max(size, 0))
        for row in self._file.rows():
            if lacking := self._arrived.lacking(row):
                self._send(lacking)
        if not self.failure:
            for folder in replaced:
                with suppress(OSError):
                    folder.rename(folder.with_name(folder.name.replace(OFFLINE, REPLACED)))

    @property
    def recorded(self) -> int:
        """The record's size in bytes, for a checkpoint."""
        return self._file.size

    def log(self, row: Row, commit: bool = True) -> None:
        """As `Run.log`; charts, which a resumed training logs anew, are not recorded."""
        if not all(isinstance(value, (int, float, str, wandb.Histogram)) for value in row.values()):
            self._log_charts(row, commit)
            return
        self._pending |= row
        if commit:
            whole, self._pending = self._pending, {}
            self._local_step += 1
            self._file.append(whole)
            if not self.failure and (lacking := self._arrived.lacking(whole)):
                self.backlog.add(lacking)
            if self.backlog.is_too_long:
                self._fail(TimeoutError("W&B's process has not read for minutes"))

    def commit(self) -> None:
        """Log what waits for a row to join."""
        if self._pending:
            self.log({})

    @property
    def summary(self) -> _Guarded:
        return _Guarded(self._try, self.itself.summary)

    @property
    def config(self) -> _Guarded:
        return _Guarded(self._try, self.itself.config)

    def alert(self, **words: Any) -> None:
        self._try(lambda: self.itself.alert(**words))

    def save(self, *words: Any, **options: Any) -> None:
        self._try(lambda: self.itself.save(*words, **options))

    def finish(self, exit_code: int | None = None) -> None:
        """As `Run.finish`, after what waits for a row or for W&B's process; once that has ended, only the record.

        Raises:
            TimeoutError, OSError: as `Run.finish`.
        """
        of_run = watched(cast("Run", self))
        of_run.end()  # W&B's client does not come to it where its process has ended.
        self.commit()
        self.backlog.wait(of_run.seconds_to_answer)
        self.is_complete = self.is_complete and not self.backlog
        try:
            self.itself.finish(exit_code=exit_code)
        except Exception as error:
            if has_ended(error):
                self._fail(error)
            if not self.failure:
                raise

    def _log_charts(self, row: Row, commit: bool) -> None:
        if self.failure:
            return
        try:
            self.itself.log(row, commit=commit)
        except Exception as error:
            if not has_ended(error):
                raise  # Rows are taken all the same.
            self._fail(error)

    def _send(self, row: Row) -> None:
        self._try(lambda: self.itself.log(row))

    def _try(self, act: Callable[[], Any]) -> None:
        if self.failure:
            return
        try:
            act()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.failure:
            return
        self.failure, self.is_complete = cause_of(error), False
        self.backlog.clear()
        self._say(
            f"W&B takes no rows ({self.failure}). Training and measuring go on, and every row is kept in "
            f"{self._file.path}; what W&B lacks is sent at the end, or by the same command with --resume."
        )

    def _earlier_folders(self) -> list[Path]:
        own = Path(self.itself.dir).parent
        return [folder for folder in own.parent.glob(f"*run-*-{self.itself.id}") if _is_earlier(folder, own)]


def _is_earlier(folder: Path, own: Path) -> bool:
    return folder.is_dir() and folder.name != own.name and not folder.name.startswith(REPLACED)


def _is_unsynced(folder: Path) -> bool:
    return folder.name.startswith(OFFLINE) and not list(folder.glob("*.synced"))


class _Guarded:
    def __init__(self, attempt: Callable[[Callable[[], Any]], None], of_run: Any) -> None:
        self._attempt = attempt
        self._of_run = of_run

    def update(self, values: dict[str, Any], **options: Any) -> None:
        self._attempt(lambda: self._of_run.update(values, **options))
