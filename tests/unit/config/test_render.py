"""README's tables come from the schema."""

from pathlib import Path

from fanoutfs.config.render import option_table

README = Path(__file__).parents[3] / "README.md"


def test_readme_holds_the_current_option_table() -> None:
    assert option_table() in README.read_text(encoding="utf-8"), "run scripts/readme-options"
