"""The rules of the house: imports run one way, files and rooms stay small, the public face is what it promises.

The second half imports the package in a process of its own, and looks at what came with it.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import rwc_wandb

ROOT = Path(__file__).parents[1]
HEAVY = {"triton", "numba", "timm", "torchvision", "accelerate", "sklearn", "rich", "vl_convert", "wandb_workspaces"}

FLOORS = [
    ["_version", "errors", "files", "options", "threads"],
    ["measure.kernels"],
    ["measure"],
    ["view"],
    ["log"],
    ["dropin"],
    [""],
    ["integrations", "launch", "study"],
    ["bench"],
    ["cli"],
    ["__main__"],
]
"""From the ground up: files and rooms of `rwc_wandb` ("" is its `__init__`). Each imports only from floors below it."""

PROMISED = {
    "History",
    "HistoryError",
    "Layer",
    "Monitor",
    "MonitoringStopped",
    "UserError",
    "__version__",
    "elementwise_relative_weight_change",
    "find_layers",
    "relative_weight_change",
    "watch",
}
MOST_FILES = 12
"""In a room, beside its `__init__`."""

MOST_LINES = 250

Sources = dict[str, str]


def package() -> Sources:
    """Module name -> its source, of the whole package."""
    found = {}
    for path in sorted((ROOT / "rwc_wandb").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path.read_text()
    return found


def imports(module: str, sources: Sources) -> set[str]:
    """The files of the package that `module` imports: at its top, inside its functions or for its types."""
    found = set()
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in sources else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "rwc_wandb"} - {module}


def floor_of(module: str) -> tuple[int, str]:
    """The floor that a file stands on, and its room there."""
    inner = module.removeprefix("rwc_wandb").removeprefix(".")
    for height, rooms in enumerate(FLOORS):
        for room in rooms:
            if inner == room or (room and inner.startswith(f"{room}.")):
                return height, room
    raise AssertionError(f"{module} stands on no floor: give it a place in FLOORS.")


def upward(sources: Sources) -> list[str]:
    """Every import that does not lead to a lower floor or stay in its room."""
    found = []
    for module in sources:
        height, room = floor_of(module)
        for target in imports(module, sources):
            other, other_room = floor_of(target)
            if other > height or (other == height and other_room != room):
                found.append(f"{module} imports {target}")
    return found


def circle(sources: Sources) -> list[str]:
    """Files that import each other in a circle; empty if there is none."""
    try:
        TopologicalSorter({module: imports(module, sources) for module in sources}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_upward() -> None:
    assert upward(package()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(package()) == []


def test_every_import_leads_to_a_file() -> None:
    sources = package()
    assert not {target for module in sources for target in imports(module, sources)} - set(sources)


def crowded(paths: Iterable[Path]) -> dict[Path, int]:
    """The rooms with more files than a reader takes in at a look."""
    files = Counter(path.parent for path in paths if path.name != "__init__.py")
    return {room: count for room, count in files.items() if count > MOST_FILES}


def test_no_room_has_more_than_twelve_files() -> None:
    assert crowded((ROOT / "rwc_wandb").rglob("*.py")) == {}


def lengthy(sources: Sources) -> dict[str, int]:
    """The files with more lines than are allowed, and how many they have."""
    lines = {module: len(source.splitlines()) for module, source in sources.items()}
    return {module: count for module, count in lines.items() if count > MOST_LINES}


def test_no_file_is_longer_than_250_lines() -> None:
    assert lengthy(package()) == {}


def test_a_long_file_is_found() -> None:
    made_up = {"long": "pass\n" * (MOST_LINES + 1), "short": "pass\n" * MOST_LINES}
    assert lengthy(made_up) == {"long": MOST_LINES + 1}


def test_a_crowded_room_is_found() -> None:
    room = Path("rwc_wandb/log")
    files = [room / "__init__.py", *(room / f"{number}.py" for number in range(MOST_FILES + 1))]
    assert crowded(files) == {room: MOST_FILES + 1}
    assert crowded(files[:-1]) == {}


def test_the_public_face_is_what_is_promised() -> None:
    assert set(rwc_wandb.__all__) == PROMISED
    assert all(hasattr(rwc_wandb, name) for name in PROMISED)
    assert not [name for name in PROMISED - {"__version__"} if not getattr(rwc_wandb, name).__doc__]


def test_the_integrations_promise_a_callback() -> None:
    sources = package()
    for trainer in ("lightning", "transformers"):
        body = ast.parse(sources[f"rwc_wandb.integrations.{trainer}"]).body
        (callback,) = [node for node in body if isinstance(node, ast.ClassDef)]
        assert callback.name == "RWCCallback"
        assert ast.get_docstring(callback)


def test_every_file_says_what_it_holds() -> None:
    assert [module for module, source in package().items() if not ast.get_docstring(ast.parse(source))] == []


@pytest.mark.parametrize(
    "source",
    [
        "from rwc_wandb.log.rows import RunRows",
        "from rwc_wandb.log import rows",
        "import rwc_wandb.log.rows",
        "def late():\n    from rwc_wandb.log.rows import RunRows",
        "if TYPE_CHECKING:\n    from rwc_wandb.log.rows import RunRows",
    ],
)
def test_an_upward_import_is_found(source: str) -> None:
    made_up = {"rwc_wandb.measure.metric": source, "rwc_wandb.log": "", "rwc_wandb.log.rows": ""}
    assert upward(made_up) == ["rwc_wandb.measure.metric imports rwc_wandb.log.rows"]


def test_an_import_of_a_neighbour_is_found() -> None:
    made_up = {"rwc_wandb.launch.finding": "import rwc_wandb.study.models", "rwc_wandb.study.models": ""}
    assert upward(made_up) == ["rwc_wandb.launch.finding imports rwc_wandb.study.models"]


def test_a_circle_is_found() -> None:
    made_up = {
        "rwc_wandb.log.rows": "from rwc_wandb.log import ending",
        "rwc_wandb.log.ending": "def late():\n    from rwc_wandb.log.rows import RunRows",
    }
    assert set(circle(made_up)) == set(made_up)


def test_a_file_without_a_floor_is_found() -> None:
    with pytest.raises(AssertionError, match="helpers stands on no floor"):
        upward({"rwc_wandb.helpers": ""})


def imported_by(statement: str) -> set[str]:
    """The top-level modules that `statement` brings in beyond those of `import torch`."""
    code = f"import sys, torch; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in result.stdout.split()} | {
        name for name in result.stdout.split() if name.startswith("rwc_wandb.")
    }


def rooms(modules: set[str]) -> set[str]:
    return {name.split(".")[1] for name in modules if name.startswith("rwc_wandb.")}


def test_importing_the_package_is_cheap() -> None:
    modules = imported_by("import rwc_wandb; assert not torch.cuda.is_initialized()")
    assert not modules & (HEAVY | {"wandb"})


def test_measure_knows_no_other_room() -> None:
    modules = imported_by(
        "import rwc_wandb.measure.monitor, rwc_wandb.measure.series.trends, rwc_wandb.measure.kernels"
    )
    # The package's own __init__ brings in the drop-in and its options; its other rooms come with the call.
    assert rooms(modules) <= {"measure", "errors", "files", "_version", "dropin", "options", "threads"}
    assert not modules & (HEAVY | {"wandb"})


@pytest.mark.parametrize(
    ("module", "unknown"),
    [
        ("rwc_wandb.log.rows", {"study", "cli", "integrations"}),
        ("rwc_wandb.view.render", {"study", "cli", "integrations", "log"}),
        ("rwc_wandb.launch.command", {"study", "view", "log", "integrations", "bench"}),
        ("rwc_wandb.cli", {"study", "view", "log", "integrations", "bench"}),
    ],
)
def test_rooms_do_not_know_those_above_them(module: str, unknown: set[str]) -> None:
    assert not rooms(imported_by(f"import {module}")) & unknown


def test_what_is_imported_is_found() -> None:
    assert "timm" in imported_by("import rwc_wandb, timm")
    assert "study" in rooms(imported_by("import rwc_wandb.study.train.loop"))
