"""Names sorted on disk come back all, in the order of their bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.backend.ordered import sorted_names

NAMES = st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), min_size=1))


@given(names=NAMES, run_names=st.integers(1, 5))
def test_names_come_back_sorted_by_their_bytes(names: list[str], run_names: int) -> None:
    assert list(sorted_names(names, run_names)) == sorted(names, key=str.encode)


def test_runs_longer_than_a_read_come_back_whole() -> None:
    names = [f"{number:07d}" * 30 for number in range(5000)]
    assert list(sorted_names(reversed(names), 1500)) == names


def test_error_while_reading_names_passes() -> None:
    def broken() -> object:
        yield "a"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        sorted_names(broken())  # type: ignore[arg-type]
