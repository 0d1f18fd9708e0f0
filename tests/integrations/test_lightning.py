"""The callback in real Trainers of Lightning, under both of its names: values against the oracle."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from series import Weights
from standin import StandIn
from torch import nn

pytest.importorskip("lightning")

from rwc_wandb import watch
from rwc_wandb.integrations.lightning import RWCCallback
from rwc_wandb.measure.delivery import MonitoringStopped

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def module(pl: ModuleType, weights: Weights, optimizers: int = 1) -> Any:
    class Regression(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch: Any) -> Any:
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            if not self.automatic_optimization:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
                weights.save(self)
            return loss

        def on_train_start(self) -> None:
            weights.save(self)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.automatic_optimization and self.trainer.global_step == len(weights.states):
                weights.save(self)

        def configure_optimizers(self) -> Any:
            parts = [self.net] if optimizers == 1 else [self.net[0], self.net[2]]
            return [torch.optim.Adam(part.parameters(), lr=0.01) for part in parts]

    torch.manual_seed(0)
    return Regression()


def fit(pl: ModuleType, made: Any, callback: Any, folder: Path, **settings: Any) -> Any:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(24, 4)), batch_size=2)
    checkpoint, more = settings.pop("ckpt_path", None), settings.pop("more", [])
    settings = {"logger": False, "enable_checkpointing": False, "max_epochs": 1} | settings
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[callback, *more],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        **settings,
    )
    trainer.fit(made, data, ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize(("package", "accumulation"), [("lightning.pytorch", 1), ("pytorch_lightning", 3)])
def test_one_measurement_per_optimizer_step(tmp_path: Path, package: str, accumulation: int) -> None:
    pl = importlib.import_module(package)
    weights, callback = Weights(), RWCCallback(run=False)
    fit(pl, module(pl, weights), callback, tmp_path, accumulate_grad_batches=accumulation)
    assert callback.monitor is not None
    assert callback.monitor.closed
    assert callback.monitor.history.steps.tolist() == list(range(1, 12 // accumulation + 1))
    assert callback.monitor.history.layers == ["net.0", "net.2"]
    weights.check(callback.monitor.history)


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    pl = importlib.import_module("lightning.pytorch")
    weights, callback = Weights(), RWCCallback(run=False)
    fit(pl, module(pl, weights, optimizers=2), callback, tmp_path)
    assert callback.monitor is not None
    weights.check(callback.monitor.history)


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
@pytest.mark.parametrize("set_up_first", [True, False])
def test_fabric(package: str, set_up_first: bool) -> None:
    fabric = pytest.importorskip(package).Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=0.01))
    monitor = watch(model, optimizer, run=False) if set_up_first else watch(net, optimizer.optimizer, run=False)
    weights = Weights()
    weights.save(net)
    for _ in range(4):
        fabric.backward(model(torch.randn(3, 4)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        weights.save(net)
    monitor.close()
    assert monitor.history.layers == ["0", "2"]
    weights.check(monitor.history)


def test_the_optimizers_that_a_module_is_given(tmp_path: Path) -> None:
    """Lightning hands out wrappers that take themselves for optimizers of torch."""
    pl = importlib.import_module("lightning.pytorch")
    weights = Weights()
    made = module(pl, weights, optimizers=2)
    monitors = []

    class Watching(pl.Callback):  # type: ignore[name-defined, misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            monitors.append(watch(pl_module, pl_module.optimizers(), run=False))

    fit(pl, made, Watching(), tmp_path)
    monitors[0].close()
    weights.check(monitors[0].history)


def test_rows_join_those_of_the_wandb_logger(tmp_path: Path, standin: StandIn) -> None:
    pl = importlib.import_module("lightning.pytorch")
    loggers = importlib.import_module("lightning.pytorch.loggers")
    callback = RWCCallback(log_every=1, histogram_every=None)
    logger = loggers.WandbLogger(project="p", save_dir=tmp_path)
    fit(pl, module(pl, Weights()), callback, tmp_path, logger=logger)
    run = logger.experiment
    run.finish()
    assert callback.monitor is not None
    history = callback.monitor.history
    rows = {row["rwc/step"]: row for row in standin.run(run.id).rows if "rwc/net/0" in row}
    assert sorted(rows) == list(range(1, 13))
    for step, row in rows.items():
        assert row["rwc/net/0"] == pytest.approx(float(history.rwc[step - 1, 0]), rel=1e-6)
    assert {"loss", "trainer/global_step"} <= rows[1].keys()


def test_a_resumed_training_continues_the_series(tmp_path: Path) -> None:
    pl = importlib.import_module("lightning.pytorch")
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    saving = callbacks.ModelCheckpoint(tmp_path, filename="seven", every_n_train_steps=7, save_top_k=-1)
    whole, resumed = RWCCallback(run=False), RWCCallback(run=False)
    weights = Weights()
    fit(pl, module(pl, weights), whole, tmp_path, enable_checkpointing=True, more=[saving])
    weights = Weights(weights.states[:7])
    fit(pl, module(pl, weights), resumed, tmp_path, ckpt_path=tmp_path / "seven.ckpt")
    assert resumed.monitor is not None
    assert resumed.monitor.history.steps.tolist() == list(range(1, 13))
    weights.check(resumed.monitor.history)


def crash_at(made: Any, number: int) -> None:
    step = made.training_step

    def crashing(batch: Any) -> Any:
        if made.trainer.global_step == number:
            raise RuntimeError("out of luck")
        return step(batch)

    made.training_step = crashing


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("end", ["last", "crash", "after"])
def test_a_checkpoint_that_the_end_of_a_training_writes(tmp_path: Path, end: str, every: int) -> None:
    """Lightning lets the callbacks that save checkpoints come after all others."""
    pl = importlib.import_module("lightning.pytorch")
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    weights, resumed = Weights(), RWCCallback(run=False, every=every)
    made = module(pl, weights)
    last = callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=100, save_last=True)
    crash = callbacks.OnExceptionCheckpoint(tmp_path, "crash")
    settings: dict[str, Any] = {"enable_checkpointing": True, "more": [last, crash]}
    if end == "crash":
        crash_at(made, 7)
        with pytest.raises(RuntimeError, match="out of luck"):
            fit(pl, made, RWCCallback(run=False, every=every), tmp_path, **settings)
    else:
        trainer = fit(pl, made, RWCCallback(run=False, every=every), tmp_path, **settings)
        trainer.save_checkpoint(tmp_path / "after.ckpt")
    done = 7 if end == "crash" else 12
    weights = Weights(weights.states[:done])
    fit(pl, module(pl, weights), resumed, tmp_path, ckpt_path=tmp_path / f"{end}.ckpt", max_epochs=2)
    assert resumed.monitor is not None
    assert resumed.monitor.history.steps.tolist() == list(range(every, 25, every))
    Weights(weights.states[::every]).check(resumed.monitor.history)


def test_what_was_measured_before_a_crash_is_kept(tmp_path: Path) -> None:
    pl = importlib.import_module("lightning.pytorch")
    weights, callback = Weights(), RWCCallback(run=False)
    made = module(pl, weights)
    crash_at(made, 3)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(pl, made, callback, tmp_path)
    assert callback.monitor is not None
    assert callback.monitor.closed
    weights.check(callback.monitor.history)


def test_a_training_after_one_whose_checkpoint_could_not_be_written(tmp_path: Path) -> None:
    pl = importlib.import_module("lightning.pytorch")

    class Full(pl.Callback):  # type: ignore[name-defined, misc]
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            raise OSError("no space left on device")

    weights, callback = Weights(), RWCCallback(run=False)
    made = module(pl, weights)
    crash_at(made, 3)
    with pytest.raises(OSError, match="no space left"):
        fit(pl, made, callback, tmp_path, more=[Full()])
    first, first_weights = callback.monitor, Weights(weights.states)
    weights = Weights()
    fit(pl, module(pl, weights), callback, tmp_path)
    assert first is not None
    assert first.closed
    first_weights.check(first.history)
    assert callback.monitor is not None
    weights.check(callback.monitor.history)


def test_a_checkpoint_of_other_layers_begins_a_new_series_and_says_so(tmp_path: Path) -> None:
    pl = importlib.import_module("lightning.pytorch")
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    saving = callbacks.ModelCheckpoint(tmp_path, filename="seven", every_n_train_steps=7, save_top_k=-1)
    fit(pl, module(pl, Weights()), RWCCallback(run=False), tmp_path, enable_checkpointing=True, more=[saving])
    resumed = RWCCallback(run=False, layers=r"net\.2$")
    with pytest.warns(MonitoringStopped, match="begins a new series at optimizer step 0, .* Training goes on"):
        trainer = fit(pl, module(pl, Weights()), resumed, tmp_path, ckpt_path=tmp_path / "seven.ckpt")
    assert trainer.global_step == 12
    assert resumed.monitor is not None
    assert resumed.monitor.history.layers == ["net.2"]
    assert resumed.monitor.history.steps.tolist() == [1, 2, 3, 4, 5]


def test_weights_that_cannot_be_measured_stop_no_training(tmp_path: Path) -> None:
    """DeepSpeed marks what ZeRO-3 partitions."""
    pl = importlib.import_module("lightning.pytorch")
    made, callback = module(pl, Weights()), RWCCallback(run=False)
    made.net[0].weight.ds_id = 0
    with pytest.warns(MonitoringStopped, match=r"measures nothing in this training: net\.0 is .* ZeRO-3, .*"):
        trainer = fit(pl, made, callback, tmp_path)
    assert trainer.global_step == 12
    assert callback.monitor is None
    assert callback.state_dict() == {}


def test_a_trial_run_without_loggers(tmp_path: Path) -> None:
    """`fast_dev_run` leaves Lightning's loggers out, and there is no run to log to."""
    pl = importlib.import_module("lightning.pytorch")
    weights, callback = Weights(), RWCCallback()
    fit(pl, module(pl, weights), callback, tmp_path, fast_dev_run=3)
    assert callback.monitor is not None
    assert callback.monitor.history.steps.tolist() == [1, 2, 3]
