"""The blocks of code in the README, for the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """All blocks in that language, in order, each without its fence."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def block(language: str, containing: str) -> str:
    """The only block in that language that contains that text."""
    [found] = [text for text in blocks(language) if containing in text]
    return found
