"""The tables of README and docs/ come from the schema."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fanoutfs.config.render import exit_code_table, option_table, profile_table

ROOT = Path(__file__).parents[3]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Markdown viewers make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("place", "table"),
    [
        ("README.md", option_table),
        ("docs/configuration.md", profile_table),
        ("docs/configuration.md", exit_code_table),
    ],
)
def test_current_tables_are_written_down(place: str, table: Callable[[], str]) -> None:
    assert table() in (ROOT / place).read_text(encoding="utf-8"), "run scripts/readme-options"


def test_links_of_the_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if link.startswith("http"):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}"
