"""Every argument of `watch`: what cannot be used is named, with what is allowed, before anything is hooked."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from rwc_wandb import watch

COUNT = "it takes a whole number from 1"
LIMIT = "it takes a number above 0, or None"
LAYERS = 'it takes "weights" (more than one dimension), "all", a regular expression or a callable'
MODELS = "watch needs a torch.nn.Module as its model, or a list or dict of them, not"
OPTIMIZER = "watch needs a torch.optim.Optimizer, not"
RUN = "it takes a W&B run, Accelerate's tracker of one, None (the active run) or False (no W&B)"
PREFIX = 'it takes a word of letters, digits, "_" and "-"'


OTHERS = torch.optim.SGD(nn.Linear(1, 1).parameters())
BIASED = nn.Linear(3, 2)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).to_sparse())


def nothing(_: str) -> None:
    return None


SAMPLE = "it takes a whole number of weights from 2 to below 2^30, or None for all of them, or a dict"
OPTIONS: list[tuple[str, list[Any], str]] = [
    ("every", [0, -1, 1.0, "1", True, None], COUNT),
    ("log_every", [0, -1, 2.5, "1", False, None], COUNT),
    ("histogram_every", [0, -1, 1e3, "never"], COUNT + ", or None for no histograms"),
    ("layers", ["nothing matches"], LAYERS),
    ("layers", ["[", "*", 3, None, ["weights"]], 'use "weights", "all", a regular expression or a callable'),
    ("stages", ["early", 3, ["early"]], "it takes a function from a layer's name to its stage"),
    ("run", ["my-run", True, 3], RUN),
    ("prefix", ["", "a.b", "../../evil", "a/b", "a b", None, 3], PREFIX),
    ("rows", ["", "mine", None], 'it takes "attached" or "own"'),
    ("alert_above", ["x", 0, -1.0, float("nan"), True], LIMIT),
    ("alert_below", ["x", 0, -1.0, float("nan")], LIMIT),
    ("sample", [0, 1, -1, 2.0, "5", True, 2**30, {"": 1}, {"[": 5}, {3: 5}, {"": True}], SAMPLE),
    ("share", ["yes", 1, None], "it takes True or False"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [(name, value, allowed) for name, values, allowed in OPTIONS for value in values]
)
def test_an_option(name: str, value: Any, allowed: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match=re.escape(allowed)) as refused:
        watch(model, optimizer, **({"run": False} | {name: value}))
    assert f"{name}={value!r}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("model", "optimizer", "sentence"),
    [
        (None, None, f"{MODELS} NoneType"),
        ("model", None, f"{MODELS} str"),
        (nn.Linear, None, f"{MODELS} type"),
        ([], None, f"{MODELS} list"),
        ({}, None, f"{MODELS} dict"),
        ([nn.Linear(1, 1), 3], None, f"{MODELS} list"),
        (nn.Linear(1, 1).parameters(), None, f"{MODELS} generator"),
        (torch.optim.SGD(nn.Linear(1, 1).parameters()), None, f"{MODELS} SGD"),
        ({"a.b": nn.Linear(1, 1)}, None, "called ['a.b']: watch takes names without dots"),
        ({1: nn.Linear(1, 1)}, None, "called [1]: watch takes names"),
        ({"": nn.Linear(1, 1)}, None, "called ['']: watch takes names"),
        (nn.ReLU(), None, "ReLU has no parameters. torch does not see modules in a plain list or dict"),
        (nn.LayerNorm(3), None, LAYERS),
        (nn.LazyLinear(3), None, "has no shape yet (a lazy module): run one forward pass before watch"),
        (nn.Linear(3, 2, device="meta"), None, "has no values yet (meta device): call watch after"),
        (
            nn.Linear(3, 2, dtype=torch.complex64),
            None,
            "no parameter of Linear that can be measured (complex64",
        ),
        (nn.Linear(3, 2), OTHERS, "SGD steps no parameter of Linear: give watch the optimizer of this model, or none"),
        (
            BIASED,
            torch.optim.Adam([BIASED.bias]),
            "layers='weights' matches no parameter of Linear that Adam steps",
        ),
        (Sparse(), None, "is stored sparsely (torch.sparse_coo), which watch cannot measure"),
        (nn.Linear(3, 2), "adam", f"{OPTIMIZER} str"),
        (nn.Linear(3, 2), torch.optim.SGD, f"{OPTIMIZER} type"),
        (nn.Linear(3, 2), nn.Linear(3, 2), f"{OPTIMIZER} Linear"),
        (nn.Linear(3, 2), [None], f"{OPTIMIZER} NoneType"),
        (nn.Linear(3, 2), [], "optimizer=[]: it takes an optimizer, several, or None"),
    ],
)
def test_a_model_or_an_optimizer(model: Any, optimizer: Any, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)) as refused:
        watch(model, optimizer, run=False)
    assert "\n" not in str(refused.value)


def test_stages_that_are_no_texts() -> None:
    with pytest.raises(ValueError, match=r"stages says None for a layer: it takes a function that gives a text"):
        watch(nn.Linear(3, 2), run=False, stages=nothing)  # type: ignore[arg-type]
