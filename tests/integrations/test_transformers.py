"""The callback in a real Trainer: values against the oracle, from the weights that the model really had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from series import Weights
from standin import StandIn

transformers = pytest.importorskip("transformers")

from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper  # noqa: E402

from rwc_wandb import MonitoringStopped  # noqa: E402
from rwc_wandb.integrations.transformers import RWCCallback  # noqa: E402


def trainer(folder: Path, callback: RWCCallback, **settings: Any) -> tuple[Any, Weights]:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(0, 11, (24, 8))
    settings = {"max_steps": 5, "per_device_train_batch_size": 2, "report_to": "none", "save_strategy": "no"} | settings
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, logging_steps=1, learning_rate=0.01, **settings
    )
    weights = Weights()

    class Saving(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            weights.save(parts["model"])

        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            weights.save(parts["model"])

    made = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[callback, Saving()],
    )
    return made, weights


@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_measurement_per_optimizer_step(tmp_path: Path, accumulation: int) -> None:
    callback = RWCCallback(run=False)
    made, weights = trainer(tmp_path, callback, gradient_accumulation_steps=accumulation)
    made.train()
    assert callback.monitor is not None
    assert callback.monitor.closed
    assert callback.monitor.history.steps.tolist() == [1, 2, 3, 4, 5]
    # The output layer is tied to the embedding: tracked once.
    assert callback.monitor.history.layers[0] == "transformer.wte"
    assert "lm_head" not in callback.monitor.history.layers
    weights.check(callback.monitor.history)


def test_rows_join_those_of_the_trainer(tmp_path: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_WATCH", "false")
    callback = RWCCallback(log_every=1, histogram_every=None)
    made, _ = trainer(tmp_path, callback, report_to="wandb", max_steps=3)
    made.train()
    run = wandb.run
    assert run is not None
    run.finish()
    assert callback.monitor is not None
    history = callback.monitor.history
    rows = {row["rwc/step"]: row for row in standin.run(run.id).rows if "rwc/transformer/wte" in row}
    assert sorted(rows) == [1, 2, 3]
    for step, row in rows.items():
        assert row["rwc/transformer/wte"] == pytest.approx(float(history.rwc[step - 1, 0]), rel=1e-6)
    assert "train/loss" in rows[1]


def test_a_training_after_one_that_was_interrupted(
    tmp_path: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a notebook, then `train()` again: the Trainer says nothing of the end of the first."""
    import wandb

    monkeypatch.setenv("WANDB_WATCH", "false")
    callback = RWCCallback(log_every=1, histogram_every=None)
    made, weights = trainer(tmp_path, callback, report_to="wandb")
    step, calls = made.training_step, []

    def interrupted(*words: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*words, **options)

    made.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.train()
    first, first_weights = callback.monitor, Weights(weights.states)
    weights.states.clear()
    with pytest.warns(UserWarning, match="another monitor of this run logs under 'rwc': this one logs under 'rwc_2'"):
        made.train()
    second = callback.monitor
    assert first is not None
    assert second is not None
    assert first.closed
    assert second.closed
    assert first.history.steps.tolist() == [1, 2]
    first_weights.check(first.history)
    assert second.history.steps.tolist() == [1, 2, 3, 4, 5]
    weights.check(second.history)
    run = wandb.run
    assert run is not None
    run.finish()
    rows = standin.run(run.id).rows
    for prefix, history in (("rwc", first.history), ("rwc_2", second.history)):
        logged = [row[f"{prefix}/transformer/wte"] for row in rows if f"{prefix}/transformer/wte" in row]
        assert logged == pytest.approx(history.rwc[:, 0].tolist(), rel=1e-6)


class FlatSteps(DeepSpeedOptimizerWrapper):  # type: ignore[misc, unused-ignore]
    """What the Trainer has of DeepSpeed's ZeRO-2, on one rank: a flattened copy of the weights steps, and is written
    back into them. DeepSpeed itself (0.19, on a CPU, ZeRO-1 and ZeRO-2) was tried by hand."""

    _is_accelerate_prepared = True

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.flat = torch.empty(sum(one.numel() for one in self.parameters))
        super().__init__(torch.optim.SGD([self.flat], lr=0.1))

    @torch.no_grad()
    def step(self) -> None:
        grads = [one.grad if one.grad is not None else torch.zeros_like(one) for one in self.parameters]
        self.flat.copy_(torch.cat([one.flatten() for one in self.parameters]))
        self.flat.grad = torch.cat([one.flatten() for one in grads])
        self.optimizer.step()
        parts = self.flat.split([one.numel() for one in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


@pytest.mark.parametrize("every", [1, 2])
def test_a_training_by_deepspeed_that_leaves_weights_whole(tmp_path: Path, every: int) -> None:
    whole, resumed = RWCCallback(run=False, every=every), RWCCallback(run=False, every=every)
    settings = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 3}
    made, weights = trainer(tmp_path, whole, **settings)
    made.optimizer = FlatSteps(made.model.parameters())
    made.train()
    assert whole.monitor is not None
    assert whole.monitor.closed
    assert whole.monitor.history.steps.tolist() == list(range(every, 6, every))
    Weights(weights.states[::every]).check(whole.monitor.history)
    made, _ = trainer(tmp_path, resumed, **settings)
    made.optimizer = FlatSteps(made.model.parameters())
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.monitor is not None
    assert resumed.monitor.history.steps.tolist() == whole.monitor.history.steps.tolist()
    np.testing.assert_allclose(resumed.monitor.history.rwc, whole.monitor.history.rwc, rtol=1e-5)


def test_weights_that_cannot_be_measured_stop_no_training(tmp_path: Path) -> None:
    """DeepSpeed marks what ZeRO-3 partitions."""
    callback = RWCCallback(run=False)
    made, weights = trainer(tmp_path, callback, save_strategy="steps", save_steps=2)
    made.model.transformer.wte.weight.ds_id = 0
    with pytest.warns(MonitoringStopped, match=r"measures nothing in this training: transformer\.wte is .* ZeRO-3, .*"):
        made.train()
    assert callback.monitor is None
    assert len(weights.states) == 6
    assert not list(tmp_path.glob("**/rwc.pt*"))


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_training_continues_the_series(tmp_path: Path, every: int) -> None:
    whole = RWCCallback(run=False, every=every)
    made, _ = trainer(tmp_path, whole, max_steps=6, save_strategy="steps", save_steps=3)
    made.train()
    resumed = RWCCallback(run=False, every=every)
    made, _ = trainer(tmp_path, resumed, max_steps=6)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert whole.monitor is not None
    assert resumed.monitor is not None
    assert resumed.monitor.history.steps.tolist() == list(range(every, 7, every))
    np.testing.assert_allclose(resumed.monitor.history.rwc, whole.monitor.history.rwc, rtol=1e-5)


def test_a_checkpoint_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = RWCCallback(run=False)
    made, weights = trainer(tmp_path, callback, max_steps=3, save_strategy="steps", save_steps=2)
    save = torch.save

    def full(what: Any, where: Any, *words: Any, **options: Any) -> None:
        if "rwc.pt" in str(where):
            raise OSError("no space left on device")
        save(what, where, *words, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(MonitoringStopped, match=r"checkpoint of step 2: OSError: no space left"):
        made.train()
    assert callback.monitor is not None
    assert callback.monitor.history.steps.tolist() == [1, 2, 3]
    weights.check(callback.monitor.history)
    assert not list(tmp_path.glob("**/rwc.pt*"))


def test_the_folder_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a hyperparameter search the Trainer's checkpoints lie in a folder of each trial."""
    for number in range(2):
        folder = tmp_path / f"run-{number}"
        callback = RWCCallback(run=False)
        made, _ = trainer(tmp_path, callback, max_steps=2, save_strategy="steps", save_steps=2)
        monkeypatch.setattr(made, "_get_output_dir", lambda trial, folder=folder: str(folder))
        made.train()
        saved = torch.load(folder / "checkpoint-2" / "rwc.pt", weights_only=True)
        assert saved["history"]["steps"].tolist() == [1, 2]


def test_a_resume_from_another_folder_says_that_a_new_series_begins(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path / "one", RWCCallback(run=False), max_steps=4, save_strategy="steps", save_steps=2)
    made.train()
    resumed = RWCCallback(run=False)
    made, _ = trainer(tmp_path / "two", resumed, max_steps=4)
    with pytest.warns(MonitoringStopped, match=r"new series at optimizer step 2.*there is no checkpoint-2 in .*two"):
        made.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    assert resumed.monitor is not None
    assert resumed.monitor.history.steps.tolist() == [3, 4]
