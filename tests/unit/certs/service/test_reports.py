"""What the CA keeps of reports: the last of each, and never more than its bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from certs.service.reports import FORGOTTEN, FRESH, MOST_BYTES, MOST_OF_ONE_IDENTITY, Kept, Reports

NOW = datetime(2026, 11, 30, 6, tzinfo=UTC)
API = "spiffe://shop.internal/api"


def kept(number: int = 0, identity: str = API, at: datetime = NOW, report: bytes = b'{"version":1}') -> Kept:
    return Kept(identity, f"{number:032x}", "192.0.2.1:1", "1f", at, report)


def instances(reports: Reports, now: datetime = NOW) -> list[int]:
    return [int(one.instance, 16) for one in reports.current(now)]


def test_the_last_of_each_instance() -> None:
    reports = Reports()
    for number, text in ((1, b'{"version":1,"at":"a"}'), (2, b"{}"), (1, b'{"version":1,"at":"b"}')):
        reports.take(kept(number, report=text))
    assert [one.to_dict(NOW)["report"].get("at") for one in reports.current(NOW)] == ["b", None]
    assert len(reports) == 2


def test_one_that_is_old_is_not_of_now_and_one_that_is_older_is_gone() -> None:
    reports = Reports()
    reports.take(kept())
    assert [reports.current(NOW + late)[0].to_dict(NOW + late)["fresh"] for late in (FRESH, FRESH * 1.1)] == [
        True,
        False,
    ]
    assert len(reports.current(NOW + FORGOTTEN)) == 1
    assert reports.current(NOW + FORGOTTEN + timedelta(seconds=1)) == []
    reports.take(kept(2, at=NOW + FORGOTTEN + timedelta(seconds=1)))
    assert len(reports) == 1


def test_how_many_are_of_now() -> None:
    reports = Reports()
    assert reports.fresh(NOW) == 0
    for number, late in enumerate((0, 5, 19)):
        reports.take(kept(number, at=NOW + timedelta(seconds=late)))
    assert [reports.fresh(NOW + timedelta(seconds=late)) for late in (19, 20, 21, 26, 40)] == [3, 3, 2, 1, 0]


def test_one_identity_takes_nobody_else_s_place() -> None:
    reports = Reports()
    reports.take(kept(7, "spiffe://shop.internal/web"))
    for number in range(MOST_OF_ONE_IDENTITY + 10):
        reports.take(kept(number))
    assert len(reports) == 1 + MOST_OF_ONE_IDENTITY
    assert instances(reports) == [*range(10, MOST_OF_ONE_IDENTITY + 10), 7]


def test_all_together_have_a_bound_and_who_was_silent_longest_goes() -> None:
    reports, size = Reports(), MOST_BYTES // 10
    for number in range(12):
        reports.take(kept(number, f"spiffe://shop.internal/s{number:02}", report=b"x" * size))
    assert instances(reports) == list(range(2, 12))


def test_a_clock_that_was_set_back_forgets_nothing() -> None:
    reports = Reports()
    reports.take(kept(1))
    reports.take(kept(2, at=NOW - timedelta(days=1)))
    assert instances(reports, NOW - timedelta(days=1)) == [1, 2]
