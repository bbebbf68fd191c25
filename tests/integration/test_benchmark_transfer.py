"""The benchmark of transfers runs: tiny files, real servers, real tools."""

from __future__ import annotations

from pathlib import Path

from benchmarks import transfer


def test_all_tools_move_all_cases_and_leave_nothing_behind(tmp_path: Path) -> None:
    sizes = {"a": [33 * transfer.MIB], "b": [1000] * 3}
    found = transfer.runs(tmp_path, sizes, rounds=1)
    tools = {"s5cmd", "ours", "ours as outputs", "rclone"}
    for case in sizes:
        assert {tool for way, tool in found if way == transfer.Way(case, "up")} == tools
        assert {tool for way, tool in found if way == transfer.Way(case, "up", "null")} == {"s5cmd", "ours"}
        for server in ("", "tls"):
            moved = {tool for way, tool in found if way == transfer.Way(case, "down", server)}
            assert moved == tools - {"ours as outputs"}
    assert all(one.wall_s > 0 and one.cpu_s > 0 and one.rss_mb > 1 for spent in found.values() for one in spent)
    assert len(list(transfer.figures(found, 1))) > len(found)
    assert list(tmp_path.iterdir()) == []
