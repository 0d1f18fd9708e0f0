"""Every field of the command line, and sweep files: one sentence for what cannot be used, and nothing is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import refusal

from rwc_wandb import History
from rwc_wandb.cli import COMMANDS, main

HUGE = "9" * 30
WHOLE = "it takes a whole number from 1"
CADENCE = 'it takes "epoch" or a whole number from 1'
MODELS = "it takes resnet18, vgg19_bn, alexnet, timm:NAME"
LEARN = "it cannot learn from batches of"
PATTERN = 'it takes "weights", "all" or a regular expression'
NAMES = "it takes up to 128 printable characters"

TRAIN = {
    "--epochs": (WHOLE, "x", "", "nan", "1.5", "1e3", "0", "-1", HUGE),
    "--batch-size": (WHOLE, "x", "", "1.5", "0", "-1", HUGE),
    "--image-size": (WHOLE, "x", "", "1.5", "0", "-1", HUGE),
    "--limit-train": (WHOLE, "x", "", "1.5", "0", "-1", HUGE),
    "--limit_test": (WHOLE, "x", "", "1.5", "0", "-1", HUGE),
    "--seed": ("it takes a whole number from 0 to below 2^32", "x", "", "nan", "1.5", "-1", str(2**32)),
    "--rwc-every": (CADENCE, "x", "", "1.5", "0", "-1", "never", "None", HUGE),
    "--histogram-every": (CADENCE, "x", "", "1.5", "0", "-3", HUGE),
    "--checkpoint-every": (CADENCE, "x", "", "1.5", "0", "-1", HUGE),
    "--lr": ("it takes a finite number above 0", "x", "", "nan", "inf", "0", "-0.0", "-1", "1e400", "0x1"),
    "--momentum": ("it takes a number from 0 to below 1", "x", "", "nan", "inf", "1", "-0.1"),
    "--weight-decay": ("it takes a finite number from 0", "x", "", "nan", "inf", "-1e-4"),
    "--target-accuracy": ("it takes a number above 0 up to 1", "x", "", "nan", "0", "1.5", "-1"),
    "--model": (MODELS, "", "nope", "timm:", "timm:nope", "torchvision:", "torchvision:nope", "../../x", "two\nlines",
                "torchvision:fasterrcnn_resnet50_fpn", "torchvision:r3d_18", "torchvision:fcn_resnet50"),
    "--dataset": ("it takes digits, cifar10", "", "svhn", "../x"),
    "--layers": (PATTERN, "", "[", "*", "nothing_matches"),
    "--sample": ('it takes a whole number from 2 to below 2^30, or "none"', "x", "", "1.5", "1", "-1", str(2**30)),
    "--precision": ("it takes fp32 or bf16", "", "fp16", "FP32"),
    "--compile": ("it takes true or false", "", "perhaps", "1", "yes"),
    "--project": (NAMES, "", " ", "a/b", "50%", "two\nlines", "x" * 129),
    "--group": (NAMES, "", "two\nlines", "x" * 129),
    "--name": (NAMES, "", "nul\0", "x" * 129),
    "--output": ("cannot be written", "file", "file/deeper", "new/" + "x" * 300),
    "--data-dir": ("it takes the path of a folder", "", "nul\0"),
}  # fmt: skip
FIELDS = [(option, value, takes) for option, (takes, *values) in TRAIN.items() for value in values]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "folder").mkdir()
    for name, text in {"file": "a: 1", "good.yaml": "method: grid\nparameters: {epochs: {value: 1}}"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(("option", "value", "takes"), FIELDS)
def test_a_field_of_train(option: str, value: str, takes: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(["train", f"{option}={value}"], capsys)
    assert sentence.startswith(option.replace("_", "-"))
    assert takes in sentence
    if option in ("--lr", "--momentum", "--weight-decay", "--target-accuracy") and value not in ("", "x", "0x1"):
        value = str(float(value))
    assert " ".join(value.split()) in sentence


def test_every_field_of_train_is_in_the_table() -> None:
    from rwc_wandb.study.train.config import TrainConfig, flag

    assert {option.replace("_", "-") for option in TRAIN} == {flag(name) for name in TrainConfig().to_dict()}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--nope"], ["--nope"]),
        (["extra"], ["extra"]),
        (["--epo=3"], ["--epo=3"]),
        (["--epochs"], ["--epochs", "expected one argument"]),
        (["--seed=0", "--seed=x"], ["--seed x"]),
        (["--rwc-every=601"], ["--rwc-every 601: it takes at most the run's 600 steps"]),
        (["--image-size=7"], ["--image-size 7: resnet18 takes images from 8 pixels on"]),
        (["--image-size=100000"], ["--image-size 100000", "GiB of memory, more than is free"]),
        (["--model=alexnet", "--image-size=31"], ["--image-size 31: alexnet takes images from 32 pixels on"]),
        (["--batch-size=1"], ["--model resnet18", LEARN, "1 image of 1x8x8", "try another --image-size"]),
        (["--limit-train=1"], ["--model resnet18", LEARN, "1 image of 1x8x8"]),
        (["--model=torchvision:inception_v3"], [LEARN, "2 images of 1x32x32", "Kernel size"]),
        (["--model=torchvision:maxvit_t"], ["--model torchvision:maxvit_t", LEARN]),
        (["--model=torchvision:vit_b_16", "--image-size=33"], [LEARN, "1x33x33", "indivisible by patch size"]),
        (["--model=timm:crossvit_tiny_240"], ["--model timm:crossvit_tiny_240", LEARN]),
    ],
)
def test_a_line_of_train(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(["train", *words], capsys)
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    ("kind", "name"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")]
)
def test_a_launcher_that_shards(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    sentence = refusal(["train", "--epochs=1", "--limit-train=64"], capsys)
    assert sentence.startswith(f"accelerate is configured for {name}, which rwc-wandb train does not support")
    assert "accelerate launch --multi_gpu" in sentence


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nope"], ["nope: there is no such command; it takes one of train, run"]),
        ([""], ["there is no such command"]),
        (["run"], ["the path of a script"]),
        (["run", ""], ["''", "no such file"]),
        (["run", "absent.py"], ["absent.py", "no such file"]),
        (["run", "folder"], ["folder", "no such file"]),
        (["run", "--every=0", "s.py"], ["--every", "'0' is no whole number from 1"]),
        (["run", "--log-every=x", "s.py"], ["--log-every", "'x' is no whole number from 1"]),
        (["run", "--histogram-every=no", "s.py"], ["--histogram-every", "'no'"]),
        (["run", "--sample=1", "s.py"], ["--sample", "'1' is no whole number of weights from 2"]),
        (["run", "--layers=[", "s.py"], ["--layers", "'[' is no regular expression"]),
        (["run", "--nope", "s.py"], ["--nope"]),
        (["run", "-m"], ["the name of a module"]),
        (["run", "-m", "no.such.module"], ["-m no.such.module: python finds no such module"]),
        (["run", "-m", "folder"], ["-m folder: python finds no such module"]),
        (["run", "-m", ".relative"], ["-m .relative: python finds no such module"]),
        (["sweep"], ["FILE"]),
        (["sweep", "--epochs=x", "good.yaml"], ["--epochs", "'x'"]),
        (["sweep", "--epochs=0", "good.yaml"], ["good.yaml: --epochs 0", WHOLE]),
        (["sweep", "--limit-train=0", "good.yaml"], ["good.yaml: --limit-train 0", WHOLE]),
        (["sweep", "--local", "--output=file", "good.yaml"], ["--output file", "cannot be written"]),
        (["view"], ["RUN"]),
        (["view", "absent"], ["absent: there is no such file or folder; name"]),
        (["view", "folder"], ["folder: this folder holds no rwc.safetensors; name"]),
        (["view", "file"], ["file cannot be read as a history"]),
        (["view", "run", "--output=file"], ["--output file", "name another folder"]),
        (["view", "run", "--output=file/x"], ["--output file/x", "name another folder"]),
        (["view", "run", "--pictures=gif"], ["--pictures", "'gif'", "'png', 'svg'"]),
        (["view", "run", "other"], ["at depth 1: 'c' against 'b'"]),
        (["view", "unmeasured"], ["holds no measurement"]),
        (["charts"], ["action, ENTITY"]),
        (["charts", "pull", "me"], ["'pull'", "push"]),
        (["charts", "push", "a b"], ["'a b'", "letters, digits"]),
        (["charts", "push", ""], ["''", "letters, digits"]),
        (["charts", "push", "me"], ["W&B needs an API key", "wandb login"]),
        (["charts", "push", "me", "--access=all"], ["--access", "'all'", "'private', 'public'"]),
        (["report"], ["ENTITY/PROJECT"]),
        (["report", "me"], ["'me': it takes ENTITY/PROJECT"]),
        (["report", "me/"], ["'me/': it takes ENTITY/PROJECT"]),
        (["report", "/rwc"], ["''", "letters, digits"]),
        (["report", "a/b/c"], ["'b/c'", "letters, digits"]),
        (["report", "a/b", "--dry-run=folder"], ["--dry-run folder", "cannot be written"]),
        (["report", "a/b", "--dry-run=absent/x"], ["--dry-run absent/x", "cannot be written"]),
        (["bench", "--rounds=0"], ["--rounds 0", WHOLE]),
        (["bench", "--rounds=x"], ["--rounds", "'x'"]),
        (["bench", "--batch-size=-1"], ["--batch-size -1", WHOLE]),
        (["bench", "--model=nope"], ["--model nope", MODELS]),
        (["bench", "--device=tpu"], ["--device", "'tpu'", "'cpu', 'cuda'"]),
        (["bench", "--output=file"], ["--output file", "name another folder"]),
    ],
)
def test_a_line_of_another_command(
    words: list[str], parts: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, layers, measurements in (("run", "ab", 2), ("other", "ac", 2), ("unmeasured", "ab", 0)):
        (folder / name).mkdir()
        history = History(layers, ["early", "later"], [1, 2])
        history.append(range(measurements), *np.ones((2, measurements, 2)))
        history.save(folder / name / "rwc.safetensors")
    sentence = refusal(words, capsys)
    assert all(part in sentence for part in parts), sentence


def grid(parameters: str) -> str:
    return f"method: grid\nparameters: {{{parameters}}}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["it has no `parameters`", "sweeps/quick.yaml"]),
        ("[1, 2]", ["it has no `parameters`"]),
        ("method: grid", ["it has no `parameters`"]),
        ("method: grid\nparameters: [a]", ["it has no `parameters`"]),
        ("a: [", ["it is no YAML"]),
        ("\0", ["it is no YAML"]),
        ("? {a: b}\n: c", ["it is no YAML"]),
        ("!!python/object/apply:os.mkdir [hacked]", ["it is no YAML"]),
        ("method: random\nparameters: {epochs: {value: 1}}", ["'random'", "it takes grid"]),
        (grid("epochz: {value: 1}"), ["epochz", "it takes the options of rwc-wandb train"]),
        (grid("1: {value: 1}"), ["parameter 1;"]),
        (grid("epochs: 3"), ["epochs: 3", "it takes `value: V`"]),
        (grid("epochs: {values: 3}"), ["it takes `value: V`"]),
        (grid("epochs: {values: []}"), ["it takes `value: V`"]),
        (grid("lr: {min: 0, max: 1}"), ["'min': 0", "it takes `value: V`"]),
        (grid("epochs: {value: x}"), ["epochs: 'x'", "it takes int"]),
        (grid("epochs: {value: 1.5}"), ["epochs: 1.5", "it takes int"]),
        (grid("epochs: {value: -1}"), ["--epochs -1", WHOLE]),
        (grid("seed: {values: [true]}"), ["seed: True", "it takes int"]),
        (grid("lr: {value: 1e-4}"), ["lr: '1e-4'", "write 0.0001"]),
        (grid("lr: {value: .nan}"), ["--lr nan"]),
        (grid("compile: {value: 'yes'}"), ["compile: 'yes'", "it takes bool"]),
        (grid("rwc_every: {value: sometimes}"), ["--rwc-every sometimes", CADENCE]),
        (grid("model: {values: [resnet18, nope]}"), ["--model nope", MODELS]),
        (grid("dataset: {value: nope}"), ["--dataset nope", "it takes digits"]),
        (grid("layers: {value: '['}"), ["--layers '['", PATTERN]),
    ],
)
def test_a_sweep_file(text: str, parts: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.yaml").write_text(text)
    for words in (["sweep", "bad.yaml"], ["sweep", "--local", "good.yaml", "bad.yaml"]):
        sentence = refusal(words, capsys)
        assert sentence.startswith("bad.yaml: ")
        assert all(part in sentence for part in parts), sentence


def test_w_and_b_s_own_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import wandb

    wandb.teardown()  # It looks at the environment once.
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    sentence = refusal(["train", "--model=timm:resnet10t", "--epochs=1", "--limit-train=64"], capsys)
    wandb.teardown()
    assert "W&B refused the run" in sentence
    assert "a/b" in sentence


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {command} " in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: rwc-wandb {command}" in capsys.readouterr().out


CONFIGURATIONS = {
    "FSDP": """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 1, fsdp_sharding_strategy: FULL_SHARD, fsdp_auto_wrap_policy: NO_WRAP}
""",
    "DeepSpeed": """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 2, gradient_accumulation_steps: 1}
""",
}

INSTALLED = {
    "deepspeed/__init__.py": "",
    "deepspeed/launcher/runner.py": "DEEPSPEED_ENVIRONMENT_NAME = '.deepspeed_env'",
    "deepspeed-0.17.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.17.0\n",
}


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_a_real_launcher_with_a_configuration_that_shards(name: str, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(CONFIGURATIONS[name] + "num_processes: 1\nnum_machines: 1\nmixed_precision: 'no'\nuse_cpu: true\n")
    folder = tmp_path / "here"
    folder.mkdir()
    words = ["accelerate.commands.launch", "--config_file", file, "-m", "rwc_wandb", "train", "--epochs=1"]
    command = [sys.executable, "-m", *words, "--dataset=digits"]
    # The launcher wants DeepSpeed installed; it takes one name of it, and runs nothing of it before the script does.
    packages = tmp_path / "packages"
    for path, text in INSTALLED.items():
        (packages / path).parent.mkdir(parents=True)
        (packages / path).write_text(text)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    result = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=200, check=False
    )
    said = result.stdout + result.stderr
    sentence = f"rwc-wandb: accelerate is configured for {name}, which rwc-wandb train does not support"
    assert said.count(sentence) == 1, said
    # The launcher's own status is 1 for every failure of its script, whose status it tells.
    assert re.search(r"exit status 2\b|exitcode\s*: 2\b", said) or result.returncode == 2, said
    assert list(folder.iterdir()) == []
