"""A sweep file's grid: the runs that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from rwc_wandb.errors import UserError
from rwc_wandb.options import NONE
from rwc_wandb.study.data.sets import check_data_set
from rwc_wandb.study.models import check_model
from rwc_wandb.study.train.config import IN_EVERY_NAME, OPTIONS, TrainConfig


@dataclass(frozen=True)
class Grid:
    """What a file of `sweeps/` says.

    Attributes:
        path: the file.
        sweep: its content, with what the command line overrides.
        points: the settings of each run, by option name; the last parameter changes fastest, as at W&B.
    """

    path: Path
    sweep: dict[str, Any]
    points: list[dict[str, Any]]

    def configs(self, output: str) -> list[TrainConfig]:
        """The configuration of each run, with a name that tells it from the others.

        Raises:
            UserError: a value that `rwc-wandb train` would refuse.
        """
        varying = [name for name in self.points[0] if len({repr(point[name]) for point in self.points}) > 1]
        found = []
        for point in self.points:
            settings = {OPTIONS[name].name: value for name, value in point.items()} | {"output": output}
            try:
                config = TrainConfig(**settings)
                check_data_set(config.dataset)
                check_model(config.model)
            except UserError as error:
                raise UserError(f"{self.path}: {error}") from error
            found.append(config.named_after(name for name in varying if name not in IN_EVERY_NAME))
        return found


def read_grid(path: Path, overrides: dict[str, Any]) -> Grid:
    """Read a sweep file whose method is grid.

    Args:
        path: a YAML file as `wandb sweep` takes it.
        overrides: option name -> the one value that stands for whatever the file says.

    Raises:
        UserError: it cannot be read, is no grid, or has a parameter that `rwc-wandb train` does not know.
    """
    try:
        sweep = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror or error}); name a file of sweeps/.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: it is no YAML ({said}); see sweeps/quick.yaml for a good one.") from error
    parameters = sweep.get("parameters") if isinstance(sweep, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{path}: it has no `parameters`; see sweeps/quick.yaml for a good one.")
    if sweep.get("method") != "grid":
        raise UserError(f"{path}: method {sweep.get('method')!r}; it takes grid: every combination of values, once.")
    sweep["parameters"] = parameters = parameters | {name: {"value": value} for name, value in overrides.items()}
    axes = [_values(path, name, entry) for name, entry in parameters.items()]
    return Grid(path, sweep, [dict(zip(parameters, point, strict=True)) for point in product(*axes)])


def _values(path: Path, name: str, entry: Any) -> list[Any]:
    if name not in OPTIONS:
        raise UserError(f"{path}: parameter {name}; it takes the options of rwc-wandb train: {', '.join(OPTIONS)}.")
    given = entry if isinstance(entry, dict) else {}
    values = given.get("values", [given["value"]] if "value" in given else None)
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: parameter {name}: {entry!r}; it takes `value: V` or `values: [V, W]`.")
    kind = OPTIONS[name].metadata["kind"]
    for value in values:
        if not kind.has_type(value):
            hint = " (YAML reads 1e-4 as text: write 0.0001)" if isinstance(value, str) and float in kind.types else ""
            types = " or ".join("nothing" if one is NONE else one.__name__ for one in kind.types)
            raise UserError(f"{path}: parameter {name}: {value!r}; it takes {types}{hint}.")
    return values
