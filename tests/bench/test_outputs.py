"""What the load generators print: figures from a good run, and no figures from any other."""

from __future__ import annotations

import json

import pytest

from tests.bench.errors import BenchError
from tests.bench.outputs import Done, parse_iperf3, parse_wrk

GOOD_WRK = """\
Running 2s test @ http://127.0.0.1:21000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.35ms    1.50ms  28.95ms   95.53%
    Req/Sec    28.66k     2.05k   31.54k    70.00%
  Latency Distribution
     50%    1.02ms
     75%    1.36ms
     90%    2.02ms
     99%    7.95ms
  57043 requests in 2.10s, 12.62MB read
Requests/sec:  28514.05
Transfer/sec:      6.31MB
"""


def test_a_good_run_of_wrk() -> None:
    done = parse_wrk(GOOD_WRK)
    assert (done.units, done.seconds) == (57043, 2.1)
    assert done.p50 == pytest.approx(0.00102)
    assert done.p99 == pytest.approx(0.00795)


@pytest.mark.parametrize(
    ("written", "seconds"), [("250.00us", 0.00025), ("1.02ms", 0.00102), ("1.50s", 1.5), ("1.00m", 60.0)]
)
def test_each_unit_of_time(written: str, seconds: float) -> None:
    assert parse_wrk(GOOD_WRK.replace("1.02ms", written)).p50 == pytest.approx(seconds)


def test_socket_errors_that_are_all_zero_are_none() -> None:
    assert parse_wrk(GOOD_WRK + "  Socket errors: connect 0, read 0, write 0, timeout 0\n").units == 57043


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD_WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n", "read 3"),
        (GOOD_WRK + "  Socket errors: connect 0, read 0, write 0, timeout 10\n", "timeout 10"),
        (GOOD_WRK + "  Non-2xx or 3xx responses: 7\n", "7 times"),
        (GOOD_WRK.replace("57043 requests", "0 requests"), "not one answer"),
        (GOOD_WRK.replace("requests in", "requests"), "no total"),
        (GOOD_WRK.replace("     50%    1.02ms\n", ""), "no 50 %"),
        (GOOD_WRK.replace("7.95ms", "7.95ns"), "'ns'"),
        ("unable to connect to 127.0.0.1:21000 Connection refused", "no total"),
        ("", "no total"),
    ],
)
def test_any_other_run_of_wrk_is_refused(text: str, fault: str) -> None:
    with pytest.raises(BenchError, match=fault):
        parse_wrk(text)


def iperf3(**received: object) -> str:
    sent = {"bytes": 4_000_000_000, "seconds": 2.0}
    return json.dumps({"start": {}, "end": {"sum_sent": sent, "sum_received": received}})


def test_a_good_run_of_iperf3_counts_what_arrived() -> None:
    assert parse_iperf3(iperf3(bytes=3_000_000_000, seconds=2.5)) == Done(3.0, 2.5)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"error": "unable to connect to server: Connection refused"}', "Connection refused"),
        (json.dumps({**json.loads(iperf3(bytes=1, seconds=1)), "error": "control socket has closed"}), "has closed"),
        (iperf3(bytes=0, seconds=2.0), "not one byte"),
        (iperf3(seconds=2.0), "no total"),
        (iperf3(bytes=None, seconds=2.0), "no total"),
        ('{"start": {}}', "no total"),
        ("iperf3: interrupt", "no JSON"),
    ],
)
def test_any_other_run_of_iperf3_is_refused(text: str, fault: str) -> None:
    with pytest.raises(BenchError, match=fault):
        parse_iperf3(text)
