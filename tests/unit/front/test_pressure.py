"""How memory limits a push."""

import pytest

from fanoutfs.front.pressure import MemoryGauge, available_bytes, read_proc, stalled_percent
from fanoutfs.records import GIB, MIB

CALM = "some avg10=0.00 avg60=1.00 avg300=0.20 total=77\nfull avg10=90.00 avg60=0.00 avg300=0.00 total=7\n"
SHORT = "some avg10=31.25 avg60=1.00 avg300=0.20 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


def memory(available_kib: int) -> str:
    return f"MemTotal:       99 kB\nMemFree:         1 kB\nMemAvailable:    {available_kib} kB\nBuffers:  3 kB\n"


@pytest.mark.parametrize(
    ("pressure", "meminfo", "expected"),
    [
        (CALM, memory(8 * 1024 * 1024), 256 * MIB),
        (CALM, memory(1024 * 1024), 128 * MIB),
        (SHORT, memory(8 * 1024 * 1024), 0),
        ("", memory(1024 * 1024), 128 * MIB),  # a kernel without PSI
        ("", "", 256 * MIB),
    ],
)
def test_limit_is_a_share_of_what_is_available_and_nothing_under_pressure(
    pressure: str, meminfo: str, expected: int
) -> None:
    texts = {"pressure/memory": pressure, "meminfo": meminfo}
    assert MemoryGauge(256 * MIB, texts.__getitem__).limit_bytes(5.0) == expected


def test_files_are_read_once_a_second_at_most() -> None:
    reads: list[str] = []

    def read(name: str) -> str:
        reads.append(name)
        return ""

    gauge = MemoryGauge(MIB, read)
    for tick in range(40):
        gauge.limit_bytes(100 + tick / 10)
    assert reads.count("meminfo") == 4


def test_kernel_of_this_machine_is_understood() -> None:
    available = available_bytes(read_proc("meminfo"))
    assert available is not None
    assert MIB < available < 1024 * GIB
    assert 0 <= stalled_percent(read_proc("pressure/memory")) <= 100
    assert read_proc("absent") == ""
