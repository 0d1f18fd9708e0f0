"""The sentences at the top of the page say what is in the series."""

import re
import warnings

import numpy as np
import torch
from histories import made_up
from torch import nn

import rwc_wandb
from rwc_wandb.measure.series.history import History
from rwc_wandb.view.findings import findings, overview, told
from rwc_wandb.view.series import series


def said(history: History) -> list[str]:
    return overview(series([history]))


def odd_of(history: History) -> list[str]:
    return findings(series([history]))


def with_shape(rwc: list[list[float]], stages: list[str]) -> History:
    """`rwc` by layer."""
    history = History([f"l{depth}" for depth in range(len(rwc))], stages, [10] * len(rwc))
    columns = np.array(rwc).T
    history.append([10 * (row + 1) for row in range(len(columns))], columns, columns)
    return history


def test_the_trend_over_depth() -> None:
    rising = with_shape([[0.1], [0.2], [0.3]], ["s"] * 3)
    assert (
        said(rising)[0]
        == "Later layers change more than earlier ones (Spearman's rho of depth against mean RWC: +1.00)."
    )
    falling = with_shape([[0.3], [0.2], [0.1]], ["s"] * 3)
    assert said(falling)[0].startswith("Later layers change less than earlier ones")
    mixed = with_shape([[0.1], [0.3], [0.2], [0.15], [0.12]], ["s"] * 5)
    assert said(mixed)[0] == "No clear trend over depth (Spearman's rho of depth against mean RWC: +0.00)."
    assert "depth" not in "".join(said(with_shape([[0.1]], ["s"])))


def test_which_stages_have_levelled_off_and_which_have_not() -> None:
    falls_for_ever = [2.0**-step for step in range(40)]
    levels_off = [1.0] * 5 + [0.01] * 35
    history = with_shape([levels_off, falls_for_ever], ["early", "later"])
    sentence = "Levelled off (within a factor 2 of its final level): early from step 60; not: later."
    assert sentence in said(history)
    history.steps_per_epoch = 20
    assert sentence.replace("step 60", "epoch 3") in said(history)


def test_odd_layers_are_named_with_when() -> None:
    odd = odd_of(
        with_shape(
            [[0, 0, 0, 0], [0.1, 0, 0.1, 0], [0.1, np.nan, np.inf, 0.1], [0, 0.1, 0.1, 0.1], [np.nan] * 4], ["s"] * 5
        )
    )
    # The most important first.
    assert odd == [
        "No finite value: l4 (4 of 4 measurements, first at step 10), l2 (2 of 4 measurements, first at step 20).",
        "Never changed (frozen, or no gradient): l0.",
        "Changed no more: l1 after step 30.",
    ]


def test_of_many_odd_layers_some_are_named() -> None:
    history = made_up(layers=9)
    history.rwc[:, 1:8] = 0
    assert odd_of(history)[-1].endswith(f"{', '.join(history.layers[1:5])} and 3 more.")


def test_nothing_odd_is_said_too() -> None:
    assert odd_of(made_up()) == []
    assert told(series([made_up()]))[0] == "Nothing odd: every layer still changes, and every value is finite."


def test_nothing_odd_is_not_said_of_values_that_are_not_finite() -> None:
    """What `broken` leaves out: everything before a layer's first finite value, of LoRA's zero-initialized B say."""
    history = made_up()
    history.rwc[0, 3], history.rwc[:2, 4] = np.inf, np.nan
    assert odd_of(history) == []
    assert told(series([history]))[0] == (
        "Nothing odd: every layer still changes, and from its first finite value on all its values are finite."
    )
    history.rwc[5, 3] = np.nan
    assert told(series([history]))[0].startswith("No finite value: ")


def trace(measurements: int = 25) -> History:
    """An EfficientNet-B4 of timm, 161 layers, with the spread of a real run and a falling level."""
    depths = [2, 4, 4, 6, 6, 8, 2]
    names = ["conv_stem"]
    for stage, depth in enumerate(depths):
        for block in range(depth):
            parts = ["conv_dw", "se.conv_reduce", "se.conv_expand", "conv_pw"] + ["conv_pwl"] * (stage > 0)
            names += [f"blocks.{stage}.{block}.{part}" for part in parts]
    names += ["conv_head", "classifier"]
    random = np.random.default_rng(0)
    level = random.normal(0, 0.5, len(names)) + np.linspace(-2, -5, measurements)[:, None]
    values = np.exp(level + random.normal(0, 0.15, level.shape))
    history = History(names, ["all"] * len(names), [10] * len(names), steps_per_epoch=100)
    history.append(100 * np.arange(1, measurements + 1), values, values)
    return history


def test_a_trace_without_outliers_has_no_finding() -> None:
    history = trace()
    assert len(history.layers) == 161
    assert odd_of(history) == []


def test_a_role_of_some_blocks_is_named_as_such() -> None:
    history = trace()
    chosen = [n.startswith(("blocks.5.", "blocks.6.")) and n.endswith("conv_dw") for n in history.layers]
    history.rwc[:, chosen] /= 60
    (said,) = odd_of(history)
    found = re.fullmatch(r"conv_dw of blocks 5 and 6, 10 layers: 1/(\d+) of the median layer\.", said)
    assert found
    assert 40 < int(found[1]) < 90


def test_a_whole_block_and_a_single_layer_are_told_apart() -> None:
    history = trace()
    history.rwc[:, [name.startswith("blocks.3.2.") for name in history.layers]] /= 200
    history.rwc[:, history.layers.index("blocks.1.2.conv_pw")] *= 1000
    one, block = odd_of(history)
    assert one.startswith("blocks.1.2.conv_pw: ")
    assert "times the median layer" in one
    assert block.startswith("all of blocks.3.2, 5 layers: 1/")


def test_what_stands_out_only_at_the_end_says_so() -> None:
    history = trace()
    history.rwc[16:, [name.endswith("conv_pwl") for name in history.layers]] /= 80
    said = odd_of(history)
    assert any(
        re.match(r"conv_pwl, 30 layers: in the last third 1/(8|9|10)\d of the median layer", each) for each in said
    )


def test_a_jump_of_some_layers_is_told_with_its_step() -> None:
    history = trace(60)
    history.rwc[30:, [name.endswith("conv_pwl") for name in history.layers]] *= 40
    said = odd_of(history)
    assert any(re.match(r"conv_pwl, 30 layers: rose to \d\d times .* from epoch 31 on\.", each) for each in said)


def test_stages_that_turn_over() -> None:
    time = np.linspace(0, 1, 30)
    history = with_shape([list(10.0 ** (1 - 2 * time)), list(10.0 ** (2 * time - 1))], ["early", "later"])
    said = odd_of(history)
    assert said == ["later overtakes early at step 160: from 1/24 to 24 times of its RWC."]


def test_few_measurements_say_nothing_of_peers() -> None:
    history = trace(3)
    history.rwc[:, 5] /= 1000
    assert odd_of(history) == []


def test_a_layer_that_starts_at_zero_is_no_finding() -> None:
    history = trace()
    history.rwc[0, 7] = np.inf
    assert odd_of(history) == []


def test_a_monitor_tells_its_findings() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with rwc_wandb.watch(model, run=False) as monitor:
        for _ in range(3):
            with torch.no_grad():
                model[0].weight.mul_(1.1)
            monitor.measure()
    assert monitor.findings() == ["Never changed (frozen, or no gradient): 1."]


def test_a_layer_of_37_keeps_its_name_beside_one_that_is_low_by_itself() -> None:
    """ResNet34's 37 layers: one at 1/60, and of the same role, by chance, another at a tenth of the median."""
    rng = np.random.default_rng(0)
    layers = [
        f"layer{stage}.{block}.conv{one}"
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
        for block in range(blocks)
        for one in (1, 2)
    ]
    layers = ["conv1", *layers, *(f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)), "fc"]
    level = rng.normal(0, 0.5, 37)
    level[[layers.index("layer3.2.conv1"), layers.index("layer1.1.conv1")]] = 0
    rwc = 0.1 * np.exp(level + rng.normal(0, 0.15, (25, 37)) - np.arange(25)[:, None] / 10)
    factors = {"layer3.2.conv1": 1 / 60, "layer1.1.conv1": 1 / 10}
    rwc *= [factors.get(layer, 1.0) for layer in layers]
    history = History(layers, ["s"] * 37, [10] * 37)
    history.append(list(range(1, 26)), rwc, rwc)
    (only,) = odd_of(history)
    factor = re.fullmatch(r"layer3\.2\.conv1: 1/(\d+) of the median layer\.", only)
    assert factor
    assert 50 < int(factor[1]) < 70
    rwc /= [factors.get(layer, 1.0) for layer in layers]
    even = History(layers, ["s"] * 37, [10] * 37)
    even.append(list(range(1, 26)), rwc, rwc)
    assert odd_of(even) == []


def test_a_layer_that_oscillates() -> None:
    history = trace()
    swing = np.where(np.arange(25) % 2, 3.0, 1 / 3)
    history.rwc[:, 7] *= swing
    (only,) = odd_of(history)
    assert re.fullmatch(r"blocks\.0\.1\.se\.conv_expand: oscillates, by a factor 9(\.\d)? from one .*", only)


def test_an_odd_layer_that_has_stopped_before_the_last_third() -> None:
    rates = [[0.1 + 0.01 * layer] * 9 for layer in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = odd_of(with_shape([*rates, [1e-4] * 4 + [0.0] * 5], ["s"] * 7))
    assert odd[0] == "l6: 1/1,200 of the median layer."
