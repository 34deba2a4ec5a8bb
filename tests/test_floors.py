"""The house: the order of the files in the README, and that each knows only what is below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain

import pytest
from readme import ROOT, TEXT

PACKAGE = ROOT / "scuttleup"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
TREES = {file: ast.parse(path.read_text("utf-8")) for file, path in FILES.items()}
DOORS = {file.removesuffix("/__init__.py"): file for file in FILES if "/__init__" in file}
# From the ground up. The README has them from the roof down, without the doors and the roof itself.
ORDER = re.findall(r"`([\w/]+\.py)`", " ".join(re.findall(r"^\| \d \| (.*?) \|", TEXT, re.M)))[::-1]


def floors() -> dict[str, int]:
    """The floor of each file. The door of a folder is just above the highest of its files."""
    floors = {file: 2 * floor for floor, file in enumerate(ORDER)}
    for folder, door in DOORS.items():
        floors[door] = 1 + max(floors[file] for file in ORDER if file.startswith(f"{folder}/"))
    return floors | {"__init__.py": 2 * len(ORDER), "__main__.py": 2 * len(ORDER)}


def imports(file: str) -> Iterator[tuple[str, str]]:
    """The files that `file` imports from, with each name; also late ones."""
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            assert not any(each.name.startswith("scuttleup") for each in node.names), "by its dots"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert not (node.module or "").startswith("scuttleup"), "by its dots"
        elif isinstance(node, ast.ImportFrom):
            folder = file.split("/")[: -node.level]
            assert node.level <= file.count("/") + 1
            for each in node.names:
                path = "/".join([*folder, *(node.module or "").split(".")]).strip("/")
                inner = f"{path}/{each.name}".strip("/")
                if node.module is None and (f"{inner}.py" in FILES or inner in DOORS):
                    path = inner
                yield DOORS.get(path, f"{path or '__init__'}.py"), each.name


def handed_out(door: str) -> set[str]:
    """The names that a door has: those that it imports, and those that it defines."""
    named = [node.names for node in ast.walk(TREES[door]) if isinstance(node, ast.ImportFrom)]
    return {each.asname or each.name for each in chain(*named)}


def test_every_file_has_its_place_in_the_order_of_reading() -> None:
    assert sorted(ORDER) == sorted(file for file in FILES if "__" not in file)


def test_every_file_has_its_tests_in_the_map_of_tests() -> None:
    text = (ROOT / "tests" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?) \| (`test_.*) \|$", text, re.M)
    named = {name for modules, _ in rows for name in re.findall(r"`([\w/]+)`", modules)}
    rooms = {name for name in named if name.endswith("/")}
    files = {f"{name}.py" for name in named - rooms} | {
        file for file in ORDER if f"{file.rpartition('/')[0]}/" in rooms
    }
    assert files == set(ORDER)
    for _, tests in rows:
        assert all((ROOT / "tests" / name).exists() for name in re.findall(r"`(\w+\.py)`", tests))


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_file_knows_only_the_files_below_it(file: str) -> None:
    """So there are no cycles: neither among those for type checkers, nor among late imports."""
    place = floors()
    assert [other for other, name in imports(file) if place[other] >= place[file]] == []


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_folder_is_entered_by_its_door_which_hands_out_what_is_used(file: str) -> None:
    for other, name in imports(file):
        folder = other.rpartition("/")[0]
        if folder and not file.startswith(f"{folder}/"):
            assert other == DOORS[folder], f"{name} is reached past the door of {folder}/"
            assert name in handed_out(other), f"{name} is not handed out by {folder}/"
