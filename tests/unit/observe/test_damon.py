"""What the kernel's DAMON says of what it pages out."""

from pathlib import Path

import pytest

from fanoutfs.observe.damon import is_paging_out, paged_out_bytes

KDAMONDS = "kernel/mm/damon/admin/kdamonds"


def _set_up(sys: Path, number: int, state: str, schemes: list[tuple[str, int]]) -> None:
    folder = sys / KDAMONDS / str(number)
    for place, (action, applied_bytes) in enumerate(schemes):
        scheme = folder / "contexts" / "0" / "schemes" / str(place)
        (scheme / "stats").mkdir(parents=True)
        (scheme / "action").write_text(f"{action}\n")
        (scheme / "stats" / "sz_applied").write_text(f"{applied_bytes}\n")
    (folder / "state").write_text(f"{state}\n")


def test_kernel_without_damon_pages_nothing_out(tmp_path: Path) -> None:
    assert not is_paging_out(tmp_path)
    assert paged_out_bytes(tmp_path) == 0


@pytest.mark.parametrize(("state", "action"), [("off", "pageout"), ("on", "lru_prio")])
def test_only_one_that_runs_and_pages_out_counts(tmp_path: Path, state: str, action: str) -> None:
    _set_up(tmp_path, 0, state, [(action, 4096)])
    assert not is_paging_out(tmp_path)
    assert paged_out_bytes(tmp_path) == 0


def test_bytes_of_all_schemes_are_asked_for_anew(tmp_path: Path) -> None:
    _set_up(tmp_path, 0, "on", [("pageout", 4096), ("stat", 1), ("pageout", 8192)])
    assert is_paging_out(tmp_path)
    assert paged_out_bytes(tmp_path) == 12288
    assert (tmp_path / KDAMONDS / "0" / "state").read_text() == "update_schemes_stats"


def test_module_that_reclaims_counts_as_well(tmp_path: Path) -> None:
    parameters = tmp_path / "module/damon_reclaim/parameters"
    parameters.mkdir(parents=True)
    (parameters / "enabled").write_text("Y\n")
    (parameters / "bytes_reclaimed_regions").write_text("4096\n")
    assert is_paging_out(tmp_path)
    assert paged_out_bytes(tmp_path) == 4096
