"""append.py and read.py as their user runs them, and how the package is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
from readme import ROOT
from waiting import LIMIT, start

import scuttleup

SCRIPTS = ["append.py", "read.py"]


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
    """Reading before anything was appended says so, and makes no database."""
    nothing = run("read.py", tmp_path)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert nothing.stderr == "read.py: logs.db: there is no database\n"
    assert os.listdir(tmp_path) == []
    outputs = [run(script, tmp_path) for script in SCRIPTS * 2]
    assert [(result.returncode, result.stderr) for result in outputs] == [(0, "")] * 4
    appended, first, appended_again, second = [result.stdout for result in outputs]
    assert appended == appended_again == ""
    assert re.fullmatch(r"\{peer: '[0-9a-f]{32}', seq: 1, entry: 'hello world'\}\n", first)
    assert second == first + first.replace("seq: 1", "seq: 2")
    assert os.listdir(tmp_path) == ["logs.db"]


def test_the_package_loads_no_more_than_an_append_needs(tmp_path: Path) -> None:
    """Of Python, too: each of these modules takes longer to load than a log needs to open."""
    code = """
import sys
try:
    import plyvel_next
except ImportError:
    import plyvel
before = set(sys.modules)
import scuttleup
imported = set(sys.modules)
with scuttleup.open("logs.db") as logs:
    logs.append("hello world")
assert set(sys.modules) - imported <= {"atexit"}, set(sys.modules) - imported
print(*imported - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = result.stdout.split()
    rooms = {name.split(".")[1] for name in loaded if name.count(".") == 2 and "scut" in name}
    assert rooms == {"leveldb", "notes", "signed"}
    unused = {"asyncio", "base64", "decimal", "enum", "hashlib", "json", "re", "typing"}
    assert unused.isdisjoint(loaded)


def test_all_public_names_can_be_seen() -> None:
    assert set(scuttleup.__all__) <= set(dir(scuttleup))
    for name in scuttleup.__all__:
        assert getattr(scuttleup, name).__doc__
    assert scuttleup.Peer.failures.__doc__
    assert scuttleup.Peer.addresses.__doc__


def test_a_misspelt_option_is_seen_by_type_checkers_and_by_python(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="value_encodign"):
        scuttleup.open(tmp_path / "logs.db", value_encodign="json")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="value_encoding is one of"):
        scuttleup.open(tmp_path / "logs.db", value_encoding="jsno")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONUTF8": "1"}, "grüße 😀\ufffd"),
        ({"PYTHONIOENCODING": "ascii"}, r"gr\xfc\xdfe \U0001f600\ufffd"),
    ],
    ids=["UTF-8", "ASCII"],
)
def test_every_entry_of_every_log_is_printed_on_a_line_that_any_terminal_can_show(
    tmp_path: Path, environment: dict[str, str], shown: str
) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="b") as logs:
        logs.extend(["two\nlines", "grüße 😀".encode() + b"\xff", "\x1b[31mred", ""])
        logs.write([("a", 1, b"of another")])
    result = run("read.py", tmp_path, **environment)
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "{peer: 'a', seq: 1, entry: 'of another'}",
        r"{peer: 'b', seq: 1, entry: 'two\nlines'}",
        f"{{peer: 'b', seq: 2, entry: '{shown}'}}",
        r"{peer: 'b', seq: 3, entry: '\x1b[31mred'}",
        "{peer: 'b', seq: 4, entry: ''}",
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_fits_on_half_a_page_and_needs_only_scuttleup(script: str) -> None:
    text = (ROOT / script).read_text()
    assert len([line for line in text.splitlines() if line and line[0] not in '#"']) <= 10
    imported = re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE)
    assert set(imported) - sys.stdlib_module_names == {"scuttleup"}


def test_trouble_is_one_line_and_status_1(tmp_path: Path) -> None:
    """Both wait for some seconds. What else can be wrong with a database: `test_database.py`."""
    with scuttleup.open(tmp_path / "logs.db") as logs:
        logs.append("mine")
        trying = {script: start(partial(run, script, tmp_path)) for script in SCRIPTS}
        for script, tried in trying.items():
            result = tried.result(LIMIT)
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr == f"{script}: logs.db is open in another process\n"
        assert logs.append("mine too").seq == 2
    assert run("read.py", tmp_path).stdout.count("\n") == 2


# --- The package ---


def test_the_package_says_that_it_is_typed() -> None:
    assert files("scuttleup").joinpath("py.typed").is_file()


LITTER = """
    .hypothesis/x tests/.hypothesis/x tests/logs.db/signing.key tests/alice-key.pem tests/.coverage
    tests/.test_log.py.swp tests/test_log.py~ tests/#test_log.py# tests/interop/node_modules/a/x.py
    scuttleup/signing.key scuttleup/a.db/000003.log scuttleup/log.py.rej scuttleup/.log.py.swp
    scuttleup/log.py~ scuttleup/.DS_Store scuttleup/.mypy_cache/x.py scuttleup/signed/alice-key.pem
"""


def test_the_sdist_of_an_untidy_tree_has_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip("flit_core.buildapi")
    tree = tmp_path / "tree"
    for folder in "scuttleup", "tests":
        ignored = shutil.ignore_patterns("node_modules", ".*", "__pycache__")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for name in "append.py", "read.py", "README.md", "pyproject.toml", "tests/.gitattributes":
        shutil.copy(ROOT / name, tree / name)
    tidy = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    for name in LITTER.split():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    monkeypatch.chdir(tree)
    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names == tidy | {"PKG-INFO"}
