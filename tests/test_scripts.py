"""append.py and read.py as their user runs them, and how the package is built."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from leveldb import open_leveldb

import scuttleup
from scuttleup import Scuttleup

ROOT = Path(__file__).parent.parent
SCRIPTS = ["append.py", "read.py"]
LIMIT = 60  # seconds, for what takes a moment


def run(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
    )


# --- The exercise ---


def test_the_exercise_as_it_is_written(tmp_path: Path) -> None:
    outputs = [run(script, tmp_path) for script in SCRIPTS * 2]
    assert [result.returncode for result in outputs] == [0, 0, 0, 0]
    assert [result.stderr for result in outputs] == ["", "", "", ""]
    appended, first, appended_again, second = [result.stdout for result in outputs]
    assert appended == appended_again == ""
    match = re.fullmatch(r"\{peer: '([0-9a-f]{32})', seq: 1, entry: 'hello world'\}\n", first)
    assert match
    id = match[1]
    assert second == (
        f"{{peer: '{id}', seq: 1, entry: 'hello world'}}\n"
        f"{{peer: '{id}', seq: 2, entry: 'hello world'}}\n"
    )


def test_only_the_database_is_left_behind(tmp_path: Path) -> None:
    for script in SCRIPTS:
        run(script, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["logs.db"]
    assert (tmp_path / "logs.db").is_dir()


def test_reading_before_anything_was_appended_prints_nothing(tmp_path: Path) -> None:
    result = run("read.py", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    run("append.py", tmp_path)
    assert run("read.py", tmp_path).stdout.count("\n") == 1


def test_every_entry_of_every_log_is_printed_on_a_line_of_its_own(tmp_path: Path) -> None:
    with open_leveldb(tmp_path / "logs.db") as db:
        logs = Scuttleup(db, id="b", value_encoding="utf-8")
        logs.extend(["two\nlines", "grüße 😀", "\x1b[31mred", ""])
        Scuttleup(db.prefixed_db(b""), id="a").append(b"a\xff")
        db.put("m\xffid".encode(), b"b")
    assert run("read.py", tmp_path, PYTHONUTF8="1").stdout.splitlines() == [
        "{peer: 'a', seq: 1, entry: 'a\ufffd'}",
        "{peer: 'b', seq: 1, entry: 'two\\nlines'}",
        "{peer: 'b', seq: 2, entry: 'grüße 😀'}",
        "{peer: 'b', seq: 3, entry: '\\x1b[31mred'}",
        "{peer: 'b', seq: 4, entry: ''}",
    ]


def test_a_terminal_that_cannot_show_a_letter_gets_an_escape(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.append("é😀")
    result = run("read.py", tmp_path, PYTHONIOENCODING="ascii")
    assert result.stderr == ""
    assert result.stdout == "{peer: 'us', seq: 1, entry: '\\xe9\\U0001f600'}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_fits_on_half_a_page_and_needs_only_scuttleup(script: str) -> None:
    text = (ROOT / script).read_text()
    assert len([line for line in text.splitlines() if line and line[0] not in '#"']) <= 10
    names = [n.names[0].name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import)]
    assert set(names) - sys.stdlib_module_names == {"scuttleup"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_trouble_is_one_line_and_status_1(tmp_path: Path, script: str) -> None:
    """What can be wrong with a database, and in which words, see `test_database.py`."""
    with scuttleup.open(tmp_path / "logs.db") as logs:
        logs.append("mine")
        result = run(script, tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"{script}: logs.db is open in another process\n"
        assert logs.append("mine too").seq == 2
    assert run("read.py", tmp_path).stdout.count("\n") == 2


# --- The package ---


def test_importing_the_package_loads_neither_asyncio_nor_json() -> None:
    """What a program does not use must not cost it its start."""
    code = (
        "import sys; before = set(sys.modules); import scuttleup;"
        "print(*sorted({'asyncio', 'json', 'decimal'} & (set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert result.stdout == "\n"


def test_the_package_says_that_it_is_typed() -> None:
    assert files("scuttleup").joinpath("py.typed").is_file()


# A module imports only from the rows below its own. `from . import …` is all that the package has
# to show.
ROWS = """
    __main__
    cli
    terminal check
    __init__
    peer
    log
    connection
    replication
    messages read_stream
    store
    authors follower
    scan
    database signing
    keys encodings changes errors
    limits
"""
FLOORS = {
    module: floor
    for floor, row in enumerate(reversed(ROWS.strip().splitlines()))
    for module in row.split()
}

MODULES = sorted((ROOT / "scuttleup").glob("**/*.py"))


def imported(tree: ast.Module) -> set[str]:
    """The modules of the package that one of them imports, `TYPE_CHECKING` or not."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = f"scuttleup.{node.module or ''}" if node.level else node.module or ""
            names = [f"{module.rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "scuttleup":
                module = rest.partition(".")[0]
                found.add(module if module in FLOORS else "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_a_module_knows_only_the_floors_below_it(path: Path) -> None:
    floor = FLOORS[path.stem]
    below = {module for module in FLOORS if FLOORS[module] < floor}
    assert imported(ast.parse(path.read_text())) <= below


def test_the_floors_are_those_of_real_modules() -> None:
    """Else the test above could look for imports and find none."""
    log = ast.parse((ROOT / "scuttleup" / "log.py").read_text())
    assert imported(log) >= {"store", "keys", "read_stream"}
    assert imported(ast.parse("def f():\n if TYPE_CHECKING:\n  from .log import x")) == {"log"}
    assert imported(ast.parse("from . import log, Scuttleup")) == {"log", "__init__"}
    assert imported(ast.parse("import scuttleup.store, os")) == {"store"}
