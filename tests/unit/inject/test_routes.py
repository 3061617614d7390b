"""The kernel's table of routes."""

from __future__ import annotations

from pathlib import Path

from sidecar.inject.routes import taken_networks

TABLE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0101A8C0	0003	0	0	0	00000000	0	0	0
eth0	0001A8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
docker0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
"""


def test_every_route_but_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(TABLE)
    assert [(str(it.network), it.what) for it in taken_networks(tmp_path / "route")] == [
        ("192.168.1.0/24", "a network of this machine, on eth0"),
        ("172.17.0.0/16", "a network of this machine, on docker0"),
    ]


def test_no_table(tmp_path: Path) -> None:
    assert taken_networks(tmp_path / "none") == ()
