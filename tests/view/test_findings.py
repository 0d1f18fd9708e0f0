"""The sentences at the top of the page say what is in the series."""

import numpy as np
from histories import made_up

from rwc_wandb.measure.series.history import History
from rwc_wandb.view.findings import findings
from rwc_wandb.view.series import series


def said(history: History) -> list[str]:
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
    odd = said(
        with_shape(
            [[0, 0, 0, 0], [0.1, 0, 0.1, 0], [0.1, np.nan, np.inf, 0.1], [0, 0.1, 0.1, 0.1], [np.nan] * 4], ["s"] * 5
        )
    )[-3:]
    assert odd == [
        "Never changed (frozen, or no gradient): l0.",
        "Changed no more: l1 after step 30.",
        "No finite value: l2 (2 of 4 measurements, first at step 20), l4 (4 of 4 measurements, first at step 10).",
    ]


def test_of_many_odd_layers_some_are_named() -> None:
    history = made_up(layers=9)
    history.rwc[:, 1:8] = 0
    assert said(history)[-1].endswith(f"{', '.join(history.layers[1:5])} and 3 more.")


def test_nothing_odd_is_said_too() -> None:
    assert said(made_up())[-1] == "Nothing odd: every layer still changes, and every value is finite."
