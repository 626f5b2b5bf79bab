"""The small-store benchmark runs, and says what each way takes from the disk."""

import json
from pathlib import Path

import pytest

from fanoutfs.bench import smallstore


def test_every_way_is_filled_read_and_churned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = "lmdb,packed,packed 3/4,aligned,packed 1 MiB ahead,fanoutfs"
    options = ["--dir", str(tmp_path), "--json", str(tmp_path / "report"), "--sizes", "4:600,110:40", "--peers", peers]
    assert smallstore.main([*options, "--reads", "100", "--jitter", "16", "--batch", "64"]) == 0
    measures = {each["name"]: each["peers"] for each in json.loads((tmp_path / "report").read_text())["measures"]}
    assert len(measures) == 20
    for name, values in measures.items():
        assert set(values) == set(peers.split(",")), name
    stored = measures["4 KiB x 600: occupied / stored after the fill"]
    assert stored["lmdb"]["median"] > 1.4, "4 KiB and a checksum take two pages"
    assert stored["fanoutfs"]["median"] < 1.3
    assert "packed 3/4" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["report"], "nothing is left over"
