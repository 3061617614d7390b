"""Names of files in a file: clean where that changes nothing, and as they are where a link is on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.documents.paths import joined


@pytest.mark.parametrize(
    ("directory", "name", "path"),
    [
        ("/etc/mesh/sidecars", "../mesh.yaml", "/etc/mesh/mesh.yaml"),
        ("/etc/mesh/sidecars", "../../a/./b.pem", "/etc/a/b.pem"),
        ("/etc/mesh", "keys/../root.pem", "/etc/mesh/root.pem"),
        ("/etc", "../../../x", "/x"),
        ("/etc/mesh", "/run/secret", "/run/secret"),
        ("sidecars", "../mesh.yaml", "mesh.yaml"),
        (".", "../mesh.yaml", "../mesh.yaml"),
        ("..", "../mesh.yaml", "../../mesh.yaml"),
        (".", "mesh.yaml", "mesh.yaml"),
        ("a", "..", "."),
    ],
)
def test_a_name(directory: str, name: str, path: str) -> None:
    assert joined(Path(directory), name, lambda _: False) == Path(path)


def test_what_leads_back_out_of_a_link_stays(tmp_path: Path) -> None:
    """The kernel goes back from where the link points, and reloads rely on links that are swapped."""
    (tmp_path / "releases" / "1").mkdir(parents=True)
    (tmp_path / "now").symlink_to("releases/1")
    (tmp_path / "releases" / "mesh.yaml").write_text("there")
    found = joined(tmp_path / "now", "../mesh.yaml")
    assert found == tmp_path / "now" / ".." / "mesh.yaml"
    assert found.read_text() == "there"


def test_a_link_further_up_is_not_resolved(tmp_path: Path) -> None:
    (tmp_path / "releases" / "1" / "sidecars").mkdir(parents=True)
    (tmp_path / "now").symlink_to("releases/1")
    assert joined(tmp_path / "now" / "sidecars", "../mesh.yaml") == tmp_path / "now" / "mesh.yaml"


def test_a_link_behind_a_real_directory_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert joined(tmp_path, "link/../real/../x") == tmp_path / "link" / ".." / "x"
