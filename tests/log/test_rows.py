"""What reaches W&B, by the real client against a stand-in of the server: values, not calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import wandb
from standin import StandIn
from training import Training, network, rwc_rows

from rwc_wandb import History, watch
from rwc_wandb.log import budget, outbox
from rwc_wandb.log.summary import summary_of
from rwc_wandb.measure.series.trends import depth_trend
from rwc_wandb.view.findings import findings_of


def check_means(row: dict[str, Any], history: History, first: int, last: int) -> None:
    """The row holds the means of measurements `first` to `last` (counted from 1)."""
    window = history.rwc[first - 1 : last].astype(float).mean(0)
    assert row["rwc/step"] == history.steps[last - 1]
    found = [row["rwc/layer1"], row["rwc/layer2/0"], row["rwc/layer2/1"]]
    np.testing.assert_allclose(found, window, rtol=1e-6)
    np.testing.assert_allclose(row["rwc_stage/layer2"], window[1:].mean(), rtol=1e-6)


def test_a_user_with_explicit_steps_loses_nothing(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=None)
    for step in training.steps(20):
        training.run.log({"loss": step * 0.5}, step=step * 10)
    server = training.finish()
    mine = [row for row in server.rows if "loss" in row]
    assert [(row["_step"], row["loss"]) for row in mine] == [(step * 10, step * 0.5) for step in range(1, 21)]
    found = rwc_rows(server)
    assert [row["rwc/step"] for row in found] == [5, 10, 15, 20]
    for row, last in zip(found, (5, 10, 15, 20), strict=True):
        check_means(row, training.monitor.history, last - 4, last)


def test_a_user_who_logs_seldom_sees_means_over_all(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=None)
    for step in training.steps(40):
        if step % 20 == 0:
            training.run.log({"loss": step})
    server = training.finish()
    assert [row["loss"] for row in server.rows if "loss" in row] == [20, 40]
    first, second = rwc_rows(server)[:2]
    check_means(first, training.monitor.history, 1, 20)
    check_means(second, training.monitor.history, 21, 40)
    assert first["loss"] == 20


def test_a_user_who_never_logs_sees_every_window(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=None)
    for _ in training.steps(17):
        pass
    server = training.finish()
    found = rwc_rows(server)
    assert [row["rwc/step"] for row in found] == [5, 10, 15, 17]
    for row, (first, last) in zip(found, [(1, 5), (6, 10), (11, 15), (16, 17)], strict=True):
        check_means(row, training.monitor.history, first, last)


def test_layers_have_the_step_as_their_axis_and_no_panel_each(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=5)
    for step in training.steps(5):
        training.run.log({"loss": step})
    server = training.finish()
    assert server.config == {"lr": 0.1}
    # The client's notation: 1 name, 2 name with *, 5 number of the axis' metric (from 1), 6 flags (2: hidden).
    step, *groups = server.raw_config["_wandb"]["value"]["m"]
    assert step["1"] == "rwc/step"
    assert 2 in step["6"]
    assert {group["2"]: 2 in group["6"] for group in groups} == {"rwc/*": True, "rwc_stage/*": False, "hist/*": True}
    assert all(group["5"] == 1 for group in groups)


def test_rows_of_our_own(standin: StandIn) -> None:
    training = Training(standin, log_every=2, histogram_every=None, rows="own", prefix="mine")
    for _ in training.steps(4):
        pass
    server = training.finish()
    found = [row for row in server.rows if "mine/layer1" in row]
    assert [(row["_step"], row["mine/step"]) for row in found] == [(0, 2), (1, 4)]
    expected = training.monitor.history.rwc[2:, 0].astype(float).mean()
    assert found[1]["mine/layer1"] == pytest.approx(expected, rel=1e-6)


def test_a_run_that_processes_share_gets_rows_of_our_own(standin: StandIn) -> None:
    training = Training(standin, mode="shared", log_every=2, histogram_every=None)
    for _ in training.steps(4):
        pass
    server = training.finish()
    first, second = rwc_rows(server)
    check_means(first, training.monitor.history, 1, 2)
    check_means(second, training.monitor.history, 3, 4)


def test_merged_rows_keep_within_the_budget(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 60)
    training = Training(standin, log_every=1, histogram_every=4, rows="own")
    for _ in training.steps(30):
        pass
    server = training.finish()
    # A tenth of the budget, 6 values, may go at once, and a row that was begun is sent whole: two rows of six values.
    # The third row comes at the end and joins all other measurements.
    found = rwc_rows(server)
    assert len(found) == 3
    check_means(found[-1], training.monitor.history, 3, 30)
    assert not any("hist/weight/layer1" in row for row in server.rows)


def test_monitors_of_one_run_share_its_budget(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 60)
    training = Training(standin, log_every=1, histogram_every=None, rows="own")
    with watch(training.model, training.optimizer, log_every=1, histogram_every=None, rows="own", prefix="other"):
        for _ in training.steps(5):
            pass
    server = training.finish()
    assert [row["rwc/step"] for row in rwc_rows(server)] == [1, 5]
    assert [row["other/step"] for row in server.rows if "other/layer1" in row] == [1, 5]


def test_windows_that_wait_for_the_budget_are_in_the_next_row(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 6)
    training = Training(standin, log_every=2, histogram_every=None)
    for step in training.steps(9):
        if step == 7:
            # One row of six values, then none until here: the budget allows the window that ends at step 8.
            monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 10**9)
        training.run.log({"loss": step})
    server = training.finish()
    assert [row["loss"] for row in server.rows if "loss" in row] == list(range(1, 10))
    found = rwc_rows(server)
    for row, (first, last) in zip(found, [(1, 2), (3, 8), (9, 9)], strict=True):
        check_means(row, training.monitor.history, first, last)


def test_what_waits_at_a_checkpoint_is_in_the_first_row_after_it(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 6)
    killed = Training(standin, log_every=2, histogram_every=None, rows="own")
    for _ in killed.steps(7):  # The budget allows the row of step 2; those of steps 4 and 6 wait.
        pass
    state = killed.monitor.state_dict()
    killed.finish()
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 10**9)
    resumed = Training(standin, log_every=2, histogram_every=None, rows="own")
    resumed.model.load_state_dict(killed.model.state_dict())
    resumed.monitor.load_state_dict(state)
    for _ in resumed.steps(2):
        pass
    first, second = rwc_rows(resumed.finish())
    check_means(first, resumed.monitor.history, 3, 8)
    check_means(second, resumed.monitor.history, 9, 9)


def test_windows_of_a_user_who_never_logs_are_merged_when_there_are_many(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_PENDING", 4)
    training = Training(standin, log_every=2, histogram_every=None)
    for _ in training.steps(12):
        pass
    server = training.finish()
    found = rwc_rows(server)
    # Windows of 2: the fifth halves their number (4, 4, 2), the sixth joins.
    assert [row["rwc/step"] for row in found] == [4, 8, 10, 12]
    for row, (first, last) in zip(found, [(1, 4), (5, 8), (9, 10), (11, 12)], strict=True):
        check_means(row, training.monitor.history, first, last)


def test_what_a_user_who_never_logs_gets_at_the_end_is_within_the_budget(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "VALUES_PER_MINUTE", 5 * 6)  # five rows
    training = Training(standin, log_every=1, histogram_every=None)
    monkeypatch.setattr(training.monitor._delivery._watched.budget, "allows", lambda values: True)
    for _ in training.steps(12):
        pass
    server = training.finish()
    found = rwc_rows(server)
    # A sixth joins pairs: 2, 2, 2; then 4, 3, 2 (with three more); then 7, 3, 2.
    assert [row["rwc/step"] for row in found] == [7, 10, 12]
    for row, (first, last) in zip(found, [(1, 7), (8, 10), (11, 12)], strict=True):
        check_means(row, training.monitor.history, first, last)


def test_of_two_monitors_of_a_user_who_never_logs_every_window_is_seen(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=None)
    other = watch(training.model, training.optimizer, log_every=3, histogram_every=None, prefix="other")
    for _ in training.steps(17):
        pass
    server = training.finish()
    found = rwc_rows(server)
    assert [row["rwc/step"] for row in found] == [5, 10, 15, 17]
    check_means(found[2], training.monitor.history, 11, 15)
    others = [row for row in server.rows if "other/layer1" in row]
    assert [row["other/step"] for row in others] == [3, 6, 9, 12, 15, 17]
    expected = other.history.rwc[12:15, 0].astype(float).mean()
    assert others[4]["other/layer1"] == pytest.approx(expected, rel=1e-6)


def test_histograms_hold_every_weight(standin: StandIn) -> None:
    training = Training(standin, histogram_every=3)
    before = [layer.parameter.detach().clone() for layer in training.monitor.layers]
    for step in training.steps(3):
        if step == 2:
            before = [layer.parameter.detach().clone() for layer in training.monitor.layers]
        training.run.log({"loss": step})
    kept = {layer.name: layer.parameter.detach() for layer in training.monitor.layers}
    server = training.finish()
    (row,) = [row for row in server.rows if "hist/weight/layer1" in row]
    assert row["rwc/step"] == 3
    for (name, weight), old in zip(kept.items(), before, strict=True):
        for kind, values in (("weight", weight), ("update", weight - old)):
            histogram = row[f"hist/{kind}/{name.replace('.', '/')}"]
            assert sum(histogram["values"]) == values.numel()
            assert histogram["bins"][0] == pytest.approx(values.min().item())
            assert histogram["bins"][-1] == pytest.approx(values.max().item())
            expected, _ = np.histogram(values.numpy().astype(float), np.array(histogram["bins"]))
            assert np.abs(np.array(histogram["values"]) - expected).sum() <= 2  # values on an edge may round either way


def test_files_summary_charts_and_axes(standin: StandIn) -> None:
    training = Training(standin, log_every=5, histogram_every=None)
    for step in training.steps(30):
        training.run.log({"loss": step})
    server = training.finish()
    history = training.monitor.history
    path = training.standin.run(training.run.id).files["rwc.safetensors"]
    assert len(path) > history.rwc.nbytes
    expected = summary_of(history)
    assert expected["rwc_summary/depth_trend"] == depth_trend(history.rwc.astype(float).mean(0))
    flattened = _flat(server.summary)
    assert flattened["rwc_summary/findings"] == ("\n".join(findings_of(history)) or "Nothing stands out.")
    for key, value in expected.items():
        assert flattened.get(key) == (pytest.approx(value) if value is not None else None), key
    table = server.tables["rwc_charts/rwc_curves_table"]
    column = {name: number for number, name in enumerate(table.columns)}
    cells = {(line[column["layer"]], line[column["time"]]): line[column["rwc"]] for line in table.data}
    for number, layer in enumerate(history.layers):
        for place, step in enumerate(history.steps.tolist()):
            assert cells[layer, step] == pytest.approx(history.rwc[place, number])


def _flat(summary: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flattened = {}
    for key, value in summary.items():
        if isinstance(value, dict) and "_type" not in value:
            flattened |= _flat(value, f"{prefix}{key}/")
        flattened[prefix + key] = value
    return flattened


def test_without_a_run_it_says_what_to_do() -> None:
    with pytest.raises(wandb.Error, match=r"wandb\.init\(\) first.*False"):
        watch(network())


def test_layers_of_a_group_added_later_join_the_rows(standin: StandIn) -> None:
    run = wandb.init(project="p")
    model = network()
    optimizer = torch.optim.SGD(model["layer2"].parameters(), lr=0.1)
    monitor = watch(model, optimizer, log_every=2, histogram_every=None, rows="own")
    for index in range(7):
        if index == 3:
            optimizer.add_param_group({"params": model["layer1"].parameters()})
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    run.finish()
    found = [row for row in standin.run(run.id).rows if "rwc/step" in row]
    assert [row["rwc/step"] for row in found] == [2, 4, 6, 7]
    assert ["rwc/layer1" in row for row in found] == [False, False, True, True]
    assert [row["rwc/layer1"] for row in found[2:]] == pytest.approx(
        [monitor.history.rwc[4:6, 0].mean(), monitor.history.rwc[6, 0]], rel=1e-6
    )
    assert found[2]["rwc/layer2/0"] == pytest.approx(monitor.history.rwc[4:6, 1].mean(), rel=1e-6)


def test_a_frozen_layer_counts_in_no_stage(standin: StandIn) -> None:
    run = wandb.init(project="p")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model, optimizer, log_every=2, histogram_every=None, rows="own")
    for _ in range(2):
        model["layer2"][1].weight.grad = torch.randn(2, 5)
        optimizer.step()
    run.finish()
    (row,) = [row for row in standin.run(run.id).rows if "rwc/step" in row]
    assert row["rwc/layer2/0"] == 0
    assert row["rwc_stage/layer2"] == pytest.approx(monitor.history.rwc[:, 2].mean(), rel=1e-6)
