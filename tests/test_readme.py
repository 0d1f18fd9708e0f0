"""What README.md and the pages beside the code say, tried.

Their snippets run and measure; the commands, files, tests and pages that they name exist.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measure.processes import verdicts
from standin import StandIn
from torch import nn

from rwc_wandb import History
from rwc_wandb.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = {
    page: (ROOT / page).read_text()
    for page in [
        "README.md",
        "CHANGELOG.md",
        ".github/CONTRIBUTING.md",
        "rwc_wandb/README.md",
        "rwc_wandb/bench/README.md",
        "rwc_wandb/integrations/README.md",
        "rwc_wandb/log/README.md",
        "rwc_wandb/study/README.md",
        "sweeps/README.md",
        "tests/README.md",
    ]
}
PYTHON = [
    found
    for text in PAGES.values()
    for found in re.findall(r"(?:<!-- tested: (\w+) -->\n)?```python\n(.*?)```", text, re.DOTALL)
]
SNIPPETS = {name: text for name, text in PYTHON if name}
DEMO = PYTHON[0][1]


def parts() -> dict[str, Any]:
    import wandb

    import rwc_wandb

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    loader = torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "torch": torch, "wandb": wandb, "rwc_wandb": rwc_wandb, "model": model, "optimizer": optimizer, "loader": loader
    }  # fmt: skip


def steps_in_the_run(standin: StandIn) -> list[int]:
    import wandb

    if wandb.run is not None:
        wandb.run.finish()
    (run,) = standin.runs.values()
    return [
        row["rwc/step"] for row in run.rows if "rwc/step" in row and any(key.startswith("rwc_stage/") for key in row)
    ]


def test_the_first_snippet(standin: StandIn) -> None:
    exec(DEMO, {})
    assert steps_in_the_run(standin) == list(range(50, 1001, 50))


def test_the_options_are_the_defaults(standin: StandIn) -> None:
    import wandb

    (snippet,) = [text for _, text in PYTHON if text.startswith("monitor = rwc_wandb.watch(")]
    names = parts()
    wandb.init(project="my-project")
    exec(snippet, names)
    default = names["rwc_wandb"].watch(names["model"], names["optimizer"], prefix="other")
    options = [(one.every, one.log_every, one.histogram_every) for one in (names["monitor"], default)]
    assert options[0] == options[1]
    wandb.run.finish()


def test_accelerate(standin: StandIn) -> None:
    accelerate = pytest.importorskip("accelerate")
    names = parts() | {"Accelerator": accelerate.Accelerator}
    exec(SNIPPETS["accelerate"], names)
    for _ in range(5):
        for batch in names["loader"]:
            names["accelerator"].backward(names["model"](batch).square().mean())
            names["optimizer"].step()
            names["optimizer"].zero_grad()
    names["accelerator"].end_training()
    assert steps_in_the_run(standin) == [50, 100]


def test_transformers(standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=4, n_embd=4, n_layer=1, n_head=1)
    tokens = torch.randint(0, 11, (64, 4))
    names = {
        "model": transformers.GPT2LMHeadModel(config),
        "dataset": [{"input_ids": row, "labels": row} for row in tokens],
        "Trainer": transformers.Trainer,
        "TrainingArguments": transformers.TrainingArguments,
    }
    exec(SNIPPETS["transformers"], names)
    # Before its end the Trainer commits no row by default: the windows of 10 and 20 are in one.
    assert steps_in_the_run(standin) == [20, 24]


@pytest.mark.filterwarnings("ignore")
def test_lightning(standin: StandIn) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import WandbLogger

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    names = parts() | {"module": Module(), "Trainer": pl.Trainer, "WandbLogger": WandbLogger}
    exec(SNIPPETS["lightning"], names)
    assert steps_in_the_run(standin) == [10, 20, 30, 40]


def fsdp2(folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true"}
    names = parts()

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    rank = torch.distributed.get_rank()
    names["model"] = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    exec(SNIPPETS["fsdp2"], names | {"fully_shard": fully_shard, "rank": rank, "train": train})
    if rank == 0:
        names["wandb"].run.finish()
        (saved,) = folder.glob("wandb/offline-run-*/files/rwc.safetensors")
        history = History.load(saved)
        assert history.steps.tolist() == [1, 2, 3, 4]
        assert (history.rwc > 0).all()


def test_fsdp2(tmp_path: Path) -> None:
    assert verdicts([fsdp2], 2, tmp_path) == {"fsdp2": ""}


def tiny_llama() -> Any:
    """Llama's own architecture; its embedding and its head have 131,072 weights, the other layers less than 65,536."""
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32
    )  # fmt: skip


def check_estimates(history: History, steps: int) -> None:
    assert history.steps.tolist() == list(range(1, steps + 1))
    sampled = np.array(history.sizes) > 65_536
    assert [name for name, is_sampled in zip(history.layers, sampled, strict=True) if is_sampled] == [
        "model.embed_tokens", "lm_head"
    ]  # fmt: skip
    assert (history.rwc > 0).all()
    assert (history.rwc_error[:, sampled] > 0).all()
    assert (history.rwc_error[:, sampled] < 0.1 * history.rwc[:, sampled]).all()
    assert not history.rwc_error[:, ~sampled].any()


def test_llama_trainer(standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_llama()
    import transformers

    tokens = torch.randint(0, 2048, (24, 16))
    names: dict[str, Any] = {"config": config, "dataset": [{"input_ids": row, "labels": row} for row in tokens]}
    names |= {name: getattr(transformers, name) for name in ("AutoModelForCausalLM", "Trainer", "TrainingArguments")}
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS["llama_trainer"], names)
    check_estimates(names["callbacks"][0].monitor.history, 9)
    assert steps_in_the_run(standin) == [9]


def llama_fsdp2(folder: Path) -> None:
    import transformers
    from torch.distributed.fsdp import fully_shard

    names = parts() | {"fully_shard": fully_shard, "loader": torch.randint(0, 2048, (4, 2, 16))}
    names["model"] = transformers.LlamaForCausalLM(tiny_llama())
    rank = torch.distributed.get_rank()
    if rank == 0:
        names["wandb"].init(mode="offline", dir=folder, settings={"silent": True})
    exec(SNIPPETS["llama_fsdp2"], names)
    if rank == 0:
        names["wandb"].finish()
        check_estimates(names["monitor"].history, 4)


def test_llama_fsdp2(tmp_path: Path) -> None:
    assert verdicts([llama_fsdp2], 2, tmp_path) == {"llama_fsdp2": ""}


def test_the_tests_that_they_name_exist() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    table = PAGES["tests/README.md"].split("| supported | shown by |")[1].split("\n\n")[0]
    file = ""
    named = re.findall(r"`(test_\w+\.py)?::(test_\w+)`", table)
    assert len(named) > 20
    elsewhere = [found for page in PAGES.values() for found in re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)]
    for path, test in named + elsewhere:
        file = path or file
        assert f"def {test}(" in files[file], f"{file}::{test}"


def test_every_snippet_is_tried() -> None:
    untried = [text.splitlines()[0] for name, text in PYTHON if not name]
    # The first has a test of its own, and so have the options of `watch`.
    assert untried == ["import torch, wandb, rwc_wandb", "monitor = rwc_wandb.watch("]
    assert all(f"test_{name}" in globals() for name in SNIPPETS)


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if link.startswith("https:"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_pages_name_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    places = [(ROOT / page).parent, ROOT, ROOT / "rwc_wandb", ROOT / "tests"]
    known = {path.name for path in ROOT.glob("*/**/*.py")}
    for name in re.findall(r"(?<![\w./])((?:\w+/)+\w+\.py|(?:\w+/)*\w+\.py)(?![\w])", text):
        assert name in known or name == "train.py" or any((place / name).exists() for place in places), name


def commands() -> list[list[str]]:
    """The words after `rwc-wandb` or `-m rwc_wandb` of every line in the pages that has one."""
    blocks = [block for text in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [call[1] for line in lines if (call := re.search(r"(?:rwc-wandb|-m rwc_wandb) (\w.*)", line.split("#")[0]))]
    return [[word for word in shlex.split(call) if word != "..."] for call in calls]


def test_the_commands_are_found() -> None:
    assert {words[0] for words in commands()} == set(COMMANDS)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_options_of_the_commands_exist(words: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module(COMMANDS[words[0]][0]).add_arguments(parser)
    parser.parse_args(words[1:])
