"""What W&B learns of values that are estimates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from standin import StandIn
from torch import nn
from training import Training, rwc_rows

from rwc_wandb import History


def test_the_run_says_what_is_an_estimate_and_its_file_has_the_errors(standin: StandIn, tmp_path: Path) -> None:
    training = Training(standin, log_every=5, sample={"layer1": None, "layer2.0": 6, "": 8})
    for _ in training.steps(10):
        pass
    server = training.finish()
    assert server.config == {
        "lr": 0.1,
        "rwc_estimated": {
            "layers": 2,
            "of_layers": 3,
            "weights_of_each": [6, 8],
            "standard_errors": "rwc_error in rwc.safetensors",
        },
    }
    (tmp_path / "rwc.safetensors").write_bytes(server.files["rwc.safetensors"])
    saved = History.load(tmp_path / "rwc.safetensors")
    np.testing.assert_array_equal(saved.rwc_error, training.monitor.history.rwc_error)
    assert (saved.rwc_error > 0).all(0).tolist() == [False, True, True]
    (first, *_) = rwc_rows(server)
    wanted = saved.rwc[:5].astype(float).mean(0)
    found = [first["rwc/layer1"], first["rwc/layer2/0"], first["rwc/layer2/1"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_an_exact_run_says_nothing(standin: StandIn) -> None:
    training = Training(standin, log_every=5, sample=1000)
    for _ in training.steps(5):
        pass
    assert training.finish().config == {"lr": 0.1}


def test_layers_that_come_later_are_counted(standin: StandIn) -> None:
    training = Training(standin, log_every=2, sample=8)
    for step in training.steps(6):
        if step == 3:
            later = nn.Linear(5, 9)
            training.model["later"] = later
            training.optimizer.add_param_group({"params": later.parameters()})
    note = training.finish().config["rwc_estimated"]
    assert (note["layers"], note["of_layers"], note["weights_of_each"]) == (4, 4, 8)
    assert np.isnan(training.monitor.history.rwc_error[:3, 3]).all()
    assert (training.monitor.history.rwc_error[4:] > 0).all()


def test_histograms_are_of_the_sample(standin: StandIn) -> None:
    training = Training(standin, log_every=1, histogram_every=1, rows="own", sample=8)
    for _ in training.steps(2):
        pass
    server = training.finish()
    found = [row["hist/weight/layer1"] for row in server.rows if "hist/weight/layer1" in row]
    # 15 weights in slices of 2: one of each of the 7 whole ones, and the last one or none.
    assert {sum(one["values"]) for one in found} <= {7, 8}
    assert len(found) == 2
    assert torch.isfinite(torch.tensor(found[0]["bins"])).all()
