"""Files followed by content: a change is told once, when it has settled."""

from __future__ import annotations

from pathlib import Path

from sidecar.follow import MAX_BYTES, Watch, read_all

A, B = Path("a"), Path("b")


def test_what_does_not_change_is_never_told() -> None:
    watch = Watch({A: b"1"})
    assert [watch.look({A: b"1"}) for _ in range(3)] == [None, None, None]


def test_a_change_is_told_once_and_only_when_it_was_seen_twice() -> None:
    watch = Watch({A: b"1"})
    assert watch.look({A: b"2"}) is None
    assert watch.look({A: b"2"}) == {A: b"2"}
    assert watch.look({A: b"2"}) is None


def test_a_file_that_is_being_written_settles_first() -> None:
    watch = Watch({A: b"old"})
    assert watch.look({A: b"n"}) is None
    assert watch.look({A: b"ne"}) is None
    assert watch.look({A: b"new"}) is None
    assert watch.look({A: b"new"}) == {A: b"new"}


def test_two_files_that_belong_together_are_told_together() -> None:
    watch = Watch({A: b"certificate 1", B: b"key 1"})
    assert watch.look({A: b"certificate 1", B: b"key 2"}) is None
    assert watch.look({A: b"certificate 2", B: b"key 2"}) is None
    assert watch.look({A: b"certificate 2", B: b"key 2"}) == {A: b"certificate 2", B: b"key 2"}


def test_a_change_that_is_taken_back_before_it_settled_is_none() -> None:
    watch = Watch({A: b"1"})
    assert watch.look({A: b"2"}) is None
    assert watch.look({A: b"1"}) is None
    assert watch.look({A: b"1"}) is None


def test_a_file_that_vanishes_is_a_change_and_so_is_its_return() -> None:
    watch = Watch({A: b"1"})
    assert watch.look({A: None}) is None
    assert watch.look({A: None}) == {A: None}
    assert watch.look({A: b"1"}) is None
    assert watch.look({A: b"1"}) == {A: b"1"}


def test_reading_follows_renames_and_symlinks_and_bounds_what_it_takes(tmp_path: Path) -> None:
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "current"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    link.symlink_to(first)
    assert read_all([link, tmp_path / "missing", tmp_path]) == {
        link: b"one",
        tmp_path / "missing": None,
        tmp_path: None,
    }
    fresh = tmp_path / "fresh"
    fresh.symlink_to(second)
    fresh.rename(link)
    assert read_all([link]) == {link: b"two"}
    second.write_bytes(b"x" * (MAX_BYTES + 1))
    assert read_all([link]) == {link: None}
