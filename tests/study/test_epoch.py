"""An epoch: its numbers, how the images are shared and resumed, and that no step waits for the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.state import AcceleratorState
from measure.processes import verdicts
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import rwc_wandb
from rwc_wandb.study.models import paper_stages
from rwc_wandb.study.train import epoch, learner
from rwc_wandb.study.train.config import TrainConfig
from rwc_wandb.study.train.epoch import Place, evaluate, train_epoch
from rwc_wandb.study.train.learner import Learner, build

HAS_GPU = torch.cuda.is_available()


def start(one: Learner, number: int = 1) -> Place:
    return Place(number, 0, torch.zeros(3, dtype=torch.float64, device=one.accelerator.device))


def go_on() -> bool:
    return False


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Learner:
    """A linear classifier that does not learn: the learning rate is lost in the rounding of its weights."""

    def build_linear(name: str, channels: int, classes: int, side: int, smallest_batch: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))

    monkeypatch.setattr(learner, "build_trainable", build_linear)
    return build(TrainConfig(learning_rate=1e-30, weight_decay=0.0, limit_train=300, limit_test=150))


def reference(one: Learner, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross entropy and accuracy in float64."""
    weight, bias = (parameter.detach().double() for parameter in one.model.parameters())
    logits = images.double().flatten(1) @ weight.T + bias
    losses = logits.logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return losses.mean().item(), (logits.argmax(1) == labels).double().mean().item()


def test_loss_and_accuracy_are_those_of_all_images(linear: Learner) -> None:
    assert len(linear.loader) == 3  # 128, 128 and 44 images: the mean over batches would be another
    shown: list[tuple[float, float]] = []
    metrics = train_epoch(linear, start(linear), go_on, lambda loss, speed: shown.append((loss, speed)))
    loss, accuracy = reference(linear, *linear.train(torch.arange(300)))
    assert metrics is not None
    assert metrics["train/loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["train/accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert metrics["images_per_second"] > 0
    assert len(shown) == 1  # the first step; the next look is a second away
    assert evaluate(linear, lambda: True) is None
    tested = evaluate(linear)
    loss, accuracy = reference(linear, *linear.test(torch.arange(150)))
    assert tested == {"test/loss": pytest.approx(loss, rel=1e-6), "test/accuracy": pytest.approx(accuracy, rel=1e-12)}


def test_what_is_shown_is_the_loss_so_far(linear: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "LOOK_EVERY", 0.0)
    shown: list[float] = []
    metrics = train_epoch(linear, start(linear), go_on, lambda loss, _: shown.append(loss))
    assert metrics is not None
    assert len(shown) == 3
    assert shown[-1] == metrics["train/loss"] != shown[0]


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would make the host wait."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func is torch.ops.aten.index.Tensor and any(
            one.dtype == torch.bool for one in args[1] if one is not None
        )
        self.count += func in self.WAITING or masks
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """`tolist`, `numpy` and `cpu` are no operations on a CPU: they are counted where they are called."""
    mode = Waits()

    def counted(name: str) -> Any:
        original = getattr(Tensor, name)

        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            mode.count += 1
            return original(tensor, *arguments, **options)

        return call

    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, name, counted(name))
    with mode:
        yield mode


@pytest.mark.parametrize("planted", ["", "item", "tolist", "mask"])
def test_no_step_waits_for_the_device(planted: str, waits: Waits) -> None:
    one = build(TrainConfig(model="timm:test_resnet", limit_train=64, limit_test=8, batch_size=8))
    place, counts = start(one), []
    waiting = {
        "": lambda: None,
        "item": lambda: place.totals[0].item(),
        "tolist": lambda: place.totals.tolist(),
        "mask": lambda: place.totals[place.totals > 0],
    }

    def after_step() -> bool:
        waiting[planted]()
        counts.append(waits.count)
        return False

    assert train_epoch(one, place, after_step) is not None
    # The loader is a batch ahead: before the last step it reaches the end of its list of indices, which is on the host.
    assert counts[-2] - counts[0] == (6 if planted else 0)


@pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU here")
def test_no_step_waits_for_a_gpu() -> None:
    one = build(TrainConfig(model="resnet18", limit_train=64, limit_test=8, batch_size=8))
    monitor = rwc_wandb.watch(one.model, one.optimizer, run=False, histogram_every=2)
    place = start(one)

    def after_step() -> bool:
        # From the second step on, because the first one compiles kernels.
        torch.cuda.set_sync_debug_mode("error" if 1 < place.step < 8 else "default")
        return False

    try:
        assert train_epoch(one, place, after_step) is not None
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            place.totals.tolist()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        monitor.close()


def numbers_of(one: Learner, epoch: int, skip: int = 0) -> list[Tensor]:
    one.loader.set_epoch(epoch)  # type: ignore[attr-defined]
    return [numbers.cpu() for numbers in (skip_first_batches(one.loader, skip) if skip else one.loader)]


CONFIG = TrainConfig(limit_train=100, limit_test=8, batch_size=16, seed=5)


def shared_among_ranks(folder: Path) -> None:
    """The batches of all ranks together are those of one process, also from the middle of an epoch on."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    one = build(CONFIG)
    assert one.accelerator.num_processes == 2
    for number in (1, 2):
        alone = torch.load(folder / f"{number}.pt")
        batches = numbers_of(one, number)
        assert [len(batch) for batch in batches] == [8] * 7
        # Accelerate fills the last batch up, so that all ranks make as many steps.
        for mine, whole in zip(batches, alone, strict=True):
            assert torch.equal(one.accelerator.gather(mine)[: len(whole)], whole)
        resumed = numbers_of(one, number, skip=3)
        assert all(torch.equal(*pair) for pair in zip(resumed, batches[3:], strict=True))


def test_images_are_shared_among_ranks_and_resumed(tmp_path: Path) -> None:
    one = build(CONFIG)
    for number in (1, 2):
        batches = numbers_of(one, number)
        assert torch.cat(batches).sort().values.tolist() == list(range(100))
        resumed = numbers_of(one, number, skip=4)
        assert all(torch.equal(*pair) for pair in zip(resumed, batches[4:], strict=True))
        torch.save(batches, tmp_path / f"{number}.pt")
    assert not torch.equal(torch.load(tmp_path / "1.pt")[0], torch.load(tmp_path / "2.pt")[0])
    cases = [shared_among_ranks, compiled_and_spread_it_is_the_same_network]
    assert verdicts(cases, 2, tmp_path) == {case.__name__: "" for case in cases}


def compiled_and_spread_it_is_the_same_network(_: Path) -> None:
    """In DDP and `torch.compile` its names, stages and test loss are as without."""
    words: dict[str, Any] = {"model": "alexnet", "image_size": 32, "limit_train": 16, "limit_test": 8, "batch_size": 8}
    plain = build(TrainConfig(**words))
    compile_model = torch.compile
    torch.compile = partial(compile_model, backend="eager")  # type: ignore[assignment]
    try:
        compiled = build(TrainConfig(**words, compile=True))
    finally:
        torch.compile = compile_model
    assert "_orig_mod" in next(iter(compiled.model.state_dict()))
    assert list(compiled.module.state_dict()) == list(plain.module.state_dict())
    stages = paper_stages("alexnet", compiled.module)
    assert stages is not None
    assert [stages(f"features.{place}") for place in (0, 3, 6, 8, 10)] == [
        "early",
        "middle",
        "middle",
        "later",
        "later",
    ]
    assert evaluate(compiled) == evaluate(plain)


def test_a_compiled_network_in_bf16_has_its_loss_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, Any] = {"precision": "bf16", "limit_train": 16, "limit_test": 40}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    AcceleratorState._reset_state()  # One precision per process is its rule.
    try:
        plain, compiled = build(TrainConfig(**words)), build(TrainConfig(**words, compile=True))
        tested = evaluate(compiled)
        assert tested == evaluate(plain)
    finally:
        AcceleratorState._reset_state()
    assert tested is not None
    assert torch.tensor(tested["test/loss"]).bfloat16().item() != tested["test/loss"]


@pytest.mark.parametrize(("side", "layout"), [(8, torch.contiguous_format), (32, torch.channels_last)])
def test_weights_and_batches_have_the_faster_layout(side: int, layout: torch.memory_format) -> None:
    one = build(TrainConfig(image_size=side, limit_train=16, limit_test=8))
    assert one.model.layer1[0].conv1.weight.is_contiguous(memory_format=layout)
    images, _ = one.train(torch.arange(4))
    assert images.is_contiguous(memory_format=layout)
    assert one.model.layer1(one.model.conv1(images)).is_contiguous(memory_format=layout)
