"""`rwc-wandb run`: what it finds, where it logs, and that the script does not notice."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from standin import StandIn
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from rwc_wandb import History, relative_weight_change, watch
from rwc_wandb.launch.finding import Finder


@pytest.fixture
def finder() -> Iterator[Finder]:
    found = Finder(every=1, log_every=2, histogram_every=None, layers="weights")
    yield found
    found.close()
    found.finish_own_run(0)


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class Discriminator(nn.Sequential):
    pass


def train(model: nn.Module, step: Callable[[], object], steps: int) -> list[list[Tensor]]:
    """The matrices of the model before and after each step."""

    def matrices() -> list[Tensor]:
        return [parameter.detach().double() for parameter in model.parameters() if parameter.dim() > 1]

    seen = [matrices()]
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        step()
        seen.append(matrices())
    return seen


def oracle(seen: list[list[Tensor]]) -> list[list[float]]:
    return [
        [float(relative_weight_change(*pair)) for pair in zip(new, old, strict=True)]
        for old, new in itertools.pairwise(seen)
    ]


def rows(standin: StandIn, prefix: str = "rwc") -> list[dict[str, float]]:
    (run,) = standin.runs.values()
    return [row for row in run.rows if f"{prefix}/step" in row]


@pytest.mark.usefixtures("standin")
def test_the_models_of_a_gan_have_a_prefix_each(finder: Finder, standin: StandIn) -> None:
    generator, discriminator = net(0), Discriminator(*net(1))
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (generator, discriminator)]
    seen_discriminator = []
    for _ in range(2):
        seen_discriminator.append(train(discriminator, optimizers[1].step, 1))
        train(generator, optimizers[0].step, 1)
    finder.close()
    finder.finish_own_run(0)
    (run,) = standin.runs.values()
    assert {"rwc.safetensors", "rwc_Sequential.safetensors"} <= run.files.keys()
    first, second = (monitor.history for _, monitor in finder.monitors)
    assert first.rwc.shape == second.rwc.shape == (2, 2)
    expected = [oracle(seen)[0] for seen in seen_discriminator]
    np.testing.assert_allclose(first.rwc, expected, rtol=1e-6)
    (row,) = rows(standin, "rwc_Sequential")
    assert row["rwc_Sequential/2"] == pytest.approx(second.rwc[:, 1].mean(), rel=1e-6)


@pytest.mark.usefixtures("standin")
def test_two_optimizers_of_one_model_measure_their_own_layers(finder: Finder) -> None:
    model = net(0)
    matrix = torch.optim.SGD(model[0].parameters(), lr=0.1)
    others = torch.optim.AdamW(model[2].parameters(), lr=0.01)

    def step() -> None:
        matrix.step()
        others.step()

    expected = np.array(oracle(train(model, step, 3)))
    for _, monitor in finder.monitors:
        monitor.flush()
    first, second = (monitor.history for _, monitor in finder.monitors)
    assert (first.layers, second.layers) == (["0"], ["2"])
    assert [prefix for prefix, _ in finder._prefixes] == ["rwc", "rwc_AdamW"]
    np.testing.assert_allclose(np.hstack([first.rwc, second.rwc]), expected, rtol=1e-6)


class WithoutGroups(torch.optim.Optimizer):
    """A wrapper with hooks of its own, whose groups are those of the optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._optimizer_step_pre_hooks: dict[int, Callable[..., object]] = OrderedDict()
        self._optimizer_step_post_hooks: dict[int, Callable[..., object]] = OrderedDict()
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, object]]:  # type: ignore[override]
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.optimizer.step()
        for group in self.param_groups:
            for parameter in group["params"]:  # type: ignore[attr-defined]
                parameter.mul_(0.9)


@pytest.mark.usefixtures("standin")
def test_a_wrapper_without_groups_of_its_own(finder: Finder) -> None:
    model = net(0)
    optimizer = WithoutGroups(torch.optim.SGD(model.parameters(), lr=0.1))
    expected = oracle(train(model, optimizer.step, 3))
    ((_, monitor),) = finder.monitors
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)


@pytest.mark.usefixtures("standin")
def test_optimizers_of_one_parameter_each_make_one_series(finder: Finder, capsys: pytest.CaptureFixture[str]) -> None:
    """They step in the backward pass, each after its own gradient."""
    model = net(0)
    own = {parameter: torch.optim.Adam([parameter], lr=0.01) for parameter in model.parameters()}
    for parameter in own:
        parameter.register_post_accumulate_grad_hook(lambda parameter: own[parameter].step())

    def step() -> None:
        model(torch.randn(5, 4)).square().mean().backward()

    expected = oracle(train(model, step, 3))
    ((_, monitor),) = finder.monitors
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)
    assert "rwc-wandb: 2 layers of Sequential are measured as 4 Adam step: rwc\n" in capsys.readouterr().err


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("how", ["never cleared", "cleared before", "with a scheduler"])
def test_lookahead_is_measured_whole_and_once(finder: Finder, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optim = pytest.importorskip("timm.optim")
    step = optim.Lookahead.step
    monkeypatch.setattr(optim.Lookahead, "step", getattr(step, "__wrapped__", step))  # as before any `zero_grad`
    model = net(0)
    optimizer = optim.create_optimizer_v2(model, opt="lookahead_sgd", lr=0.1)
    if how == "with a scheduler":  # it keeps a `step` without hooks
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    if how != "never cleared":  # from here on torch calls hooks at its steps
        optimizer.zero_grad()
    expected = oracle(train(model, lambda: optimizer.step(), 13))
    finder.close()
    ((_, monitor),) = finder.monitors
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)


@pytest.mark.usefixtures("standin")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_compiled_step(finder: Finder, recwarn: pytest.WarningsRecorder) -> None:
    model = net(0)
    step = torch.compile(torch.optim.SGD(model.parameters(), lr=0.1).step, backend="eager")
    expected = oracle(train(model, step, 3))
    finder.close()
    ((_, monitor),) = finder.monitors
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)
    assert not [str(warning.message) for warning in recwarn if "rwc_wandb" in str(warning.message)]


@pytest.mark.usefixtures("standin")
def test_parameters_of_no_module_are_said_and_trained(finder: Finder, capsys: pytest.CaptureFixture[str]) -> None:
    image = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.SGD([image], lr=1.0)
    image.grad = torch.ones(3, 3)
    optimizer.step()
    optimizer.step()
    assert image.mean() == -2
    assert capsys.readouterr().err.splitlines() == [
        "rwc-wandb: SGD is not measured: its parameters belong to no torch.nn.Module."
    ]
    assert not finder.monitors


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("choice", ["weights", r"\.2$"])
def test_an_average_beside_the_model_is_no_layer(choice: str) -> None:
    """As under timm's --model-ema, where one module holds the trained weights and their average."""
    finder = Finder(every=1, log_every=2, histogram_every=None, layers=choice)
    both = nn.ModuleDict({"online": net(0), "average": net(0)})
    both["average"].requires_grad_(False)
    optimizer = torch.optim.SGD(both["online"].parameters(), lr=0.1)
    expected = oracle(train(both["online"], optimizer.step, 2))
    finder.close()
    finder.finish_own_run(0)
    ((_, monitor),) = finder.monitors
    assert monitor.history.layers == (["online.0", "online.2"] if choice == "weights" else ["online.2"])
    np.testing.assert_allclose(monitor.history.rwc, np.array(expected)[:, -len(monitor.layers) :], rtol=1e-6)


@pytest.mark.usefixtures("standin")
def test_an_optimizer_of_biases_is_told_what_to_do(finder: Finder, capsys: pytest.CaptureFixture[str]) -> None:
    model = net(0)
    torch.optim.Adam([model[0].bias]).step()
    assert capsys.readouterr().err.splitlines() == [
        "rwc-wandb: Adam is not measured: no parameter of Sequential that it steps has more than one dimension "
        "(--layers all measures the others)."
    ]
    assert not finder.monitors


@pytest.mark.usefixtures("standin")
def test_a_failure_of_ours_leaves_the_training_alone(capsys: pytest.CaptureFixture[str]) -> None:
    finder = Finder(every=1, log_every=2, histogram_every=None, layers="nothing is called that")
    model = net(0)
    before = model[0].weight.detach().clone()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1).step, 2)
    finder.close()
    assert not torch.equal(model[0].weight, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert "SGD is not measured: ValueError: No layer to track" in line


def test_a_script_that_watches_its_model_is_left_alone(finder: Finder) -> None:
    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, run=False) as monitor:
        train(model, optimizer.step, 2)
    assert len(monitor.history) == 2
    assert not finder.monitors


def test_a_run_that_the_script_opens_late_gets_every_measurement(finder: Finder, standin: StandIn) -> None:
    import wandb

    model = net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer.step, 1)
    with wandb.init(project="theirs"):
        train(model, optimizer.step, 4)
    (run,) = standin.runs.values()
    assert run.project == "theirs"
    assert [row["rwc/step"] for row in rows(standin)] == [2, 4, 5]


def test_a_run_of_our_own_is_no_obstacle_to_theirs(finder: Finder, standin: StandIn) -> None:
    import wandb

    first = net(0)
    train(first, torch.optim.SGD(first.parameters(), lr=0.1).step, 2)
    assert wandb.run is None
    theirs = wandb.init(project="theirs", config={"lr": 0.1})
    theirs.log({"loss": 1})
    theirs.finish()
    finder.close()
    finder.finish_own_run(3)
    ours, their = sorted(standin.runs.values(), key=lambda run: run.project == "theirs")
    assert (their.config, their.rows[0]["loss"]) == ({"lr": 0.1}, 1)
    assert not their.files.get("rwc.safetensors")
    assert ours.files["rwc.safetensors"]
    assert (ours.exit_code, their.exit_code) == (3, 0)


def test_a_disabled_run_costs_nothing_but_the_rows(finder: Finder, recwarn: pytest.WarningsRecorder) -> None:
    import wandb

    model = net(0)
    with wandb.init(mode="disabled"):
        expected = oracle(train(model, torch.optim.SGD(model.parameters(), lr=0.1).step, 3))
        finder.close()
    ((_, monitor),) = finder.monitors
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)
    assert not [str(warning.message) for warning in recwarn if "rwc_wandb" in str(warning.message)]


def models_that_are_gone(finder: Finder) -> None:
    for seed in range(3):
        model = net(seed)
        optimizer: Optimizer | None = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer.step, 1)
        del model, optimizer
    assert [monitor.closed for _, monitor in finder.monitors] == [False]


def test_models_that_are_gone_are_not_kept(tmp_path: Path) -> None:
    """In a process of its own: where an earlier test left a W&B run open, its console hook fails at every line that is
    said, and pytest keeps the traceback, whose frames hold the optimizer."""
    code = (
        "from test_run_command import *; from test_run_command import models_that_are_gone as case; "
        "case(Finder(every=1, log_every=2, histogram_every=None, layers='weights'))"
    )
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "WANDB_MODE": "offline"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


SCRIPT = """
import atexit, json, signal, sys, torch
atexit.register(lambda: print(getattr(sys, "last_value", None)))
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
with torch.no_grad():
    model.weight.fill_(1.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(3):
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps([sys.argv, sys.path[0], __file__, __name__, __spec__ is None, model.weight.tolist()[0]]))
class Odd(Exception): pass
ending = sys.argv[-1]
if ending == "raise":
    raise Odd("as ever")
if ending == "interrupt":
    # A process that is started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
sys.exit(int(ending) if ending.isdecimal() else ending)
"""


def started(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # With a name for the charts the page that stands in for them need not be drawn.
    environment = kept | {"WANDB_DIR": str(folder), "HOME": str(folder), "RWC_WANDB_CHARTS": "me"} | variables
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["package/train.py", "--every", "x", "--", "-m", "7"],
        ["package/train.py", "raise"],
        ["package/train.py", "interrupt"],
        ["-m", "package.train", "--log-every", "5"],
    ],
)
def test_the_script_does_not_notice(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "train.py").write_text(SCRIPT)
    plain = started(tmp_path, *words)
    separator = [] if words[0] == "-m" else ["--"]
    command = ["-m", "rwc_wandb", "run", "--log-every", "1", *separator, *words]
    ours = started(tmp_path, *command, WANDB_MODE="offline")
    stdout, stderr = plain.communicate(timeout=300)
    our_stdout, our_stderr = ours.communicate(timeout=300)
    assert ours.returncode == plain.returncode == {"7": 7, "5": 5, "interrupt": -signal.SIGINT}.get(words[-1], 1)
    assert our_stdout == stdout  # with the trained weights in it
    assert [line for line in our_stderr.splitlines() if not line.startswith("rwc-wandb: ")] == stderr.splitlines()
    assert "W&B is offline (WANDB_MODE is offline); later: wandb login, then wandb sync " in our_stderr


def test_without_a_key_the_run_is_offline_and_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = started(tmp_path, "-m", "rwc_wandb", "run", "script.py", "0")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    first, second = stderr.splitlines()
    assert first == "rwc-wandb: 1 layer of Linear is measured as SGD steps: rwc"
    assert second.startswith("rwc-wandb: W&B is offline (no API key); later: wandb login, then wandb sync ")
    (saved,) = tmp_path.glob("wandb/offline-run-*/files/rwc.safetensors")
    assert History.load(saved).steps.tolist() == [1, 2, 3]


def test_a_sample_gives_estimates_with_errors(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    for sample, is_estimate in (("4", True), ("none", False)):
        process = started(tmp_path, "-m", "rwc_wandb", "run", "--sample", sample, "script.py", "0")
        process.communicate(timeout=300)
        assert process.returncode == 0
        newest = max(tmp_path.glob("wandb/offline-run-*/files/rwc.safetensors"), key=lambda path: path.stat().st_mtime)
        assert (History.load(newest).rwc_error > 0).all() == is_estimate


def test_wrong_options_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rwc_wandb.cli import main

    wrong = [["--every", "0", "x.py"], ["--layers", "(", "x.py"], ["nowhere.py"], []]
    named = ["'0' is no whole number from 1", "'(' is no regular expression", "nowhere.py", "path of a script"]
    for words, name in zip(wrong, named, strict=True):
        assert main(["run", *words]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert name in sentence
