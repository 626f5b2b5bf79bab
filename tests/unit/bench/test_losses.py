"""Who takes pages from the page cache while something is measured."""

from fanoutfs.bench.machine import PageLosses


def test_nobody_is_named_when_nothing_was_taken() -> None:
    assert PageLosses(3, 4096).since(PageLosses(3, 4096)) == ""


def test_both_who_took_pages_are_named() -> None:
    before = PageLosses(3, 4096)
    assert PageLosses(4, 4096).since(before) == "somebody else dropped the page cache 1 times"
    assert PageLosses(3, 8192).since(before) == "DAMON paged out 4,096 bytes"
    assert PageLosses(4, 8192).since(before).count(" and ") == 1
