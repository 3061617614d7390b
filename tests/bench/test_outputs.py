"""What the load generators print: figures from a good run, and no figures from any other."""

from __future__ import annotations

import json

import pytest

from tests.bench.errors import BenchError
from tests.bench.outputs import Done, parse_h2load, parse_iperf3, parse_pgbench, parse_redis, parse_wrk

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


def h2load(took: list[int], failed: int = 0, step: int = 10_000) -> str:
    """A request each ``step`` microseconds, in the order in which they were answered."""
    log = "".join(f"{1796005966675778 + number * step}\t200\t{micros}\n" for number, micros in enumerate(took))
    return (
        f"starting benchmark...\n{''.join(sorted(log.splitlines(keepends=True), reverse=True))}\n"
        f"finished in 2.02s, 99.01 req/s, 14.65KB/s\n"
        f"requests: {len(took)} total, {len(took)} started, {len(took)} done, {len(took) - failed} succeeded, "
        f"{failed} failed, {failed} errored, 0 timeout\n"
    )


def test_a_good_run_of_h2load_without_its_first_quarter_of_a_second() -> None:
    done = parse_h2load(h2load([90_000] * 25 + [1000] * 98 + [7000] * 2))
    assert (done.units, done.seconds) == (125, 2.02)
    assert done.p50 == pytest.approx(0.001)
    assert done.p99 == pytest.approx(0.007)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no total"),
        (h2load([]), "0 requests succeeded"),
        (h2load([1000] * 100, failed=3), "97 requests succeeded, 3 failed"),
        (h2load([1000] * 5), "no request after its first"),
    ],
)
def test_any_other_run_of_h2load_is_refused(text: str, fault: str) -> None:
    with pytest.raises(BenchError, match=fault):
        parse_h2load(text)


REDIS = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"\n'
    '"GET","2500.00","5.488","0.280","3.183","14.831","20.207","40.191"\n'
)


def test_a_good_run_of_redis_benchmark() -> None:
    warned = REDIS + "WARNING: Keepalive disabled. You probably need 'echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse'\n"
    done = parse_redis(warned, 5000)
    assert (done.units, done.seconds) == (5000, 2.0)
    assert done.p50 == pytest.approx(0.003183)
    assert done.p99 == pytest.approx(0.020207)


@pytest.mark.parametrize(
    "text", ["", REDIS.splitlines()[0], REDIS.replace("2500.00", "0.00"), REDIS.replace("rps", "x")]
)
def test_any_other_run_of_redis_benchmark_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="redis-benchmark"):
        parse_redis(text, 5000)


PGBENCH = """\
transaction type: <builtin: select only>
number of transactions actually processed: 250
number of failed transactions: 0 (0.000%)
latency average = 16.000 ms
average connection time = 15.000 ms
tps = 125.000000 (including reconnection times)
"""


def test_a_good_run_of_pgbench() -> None:
    assert parse_pgbench(PGBENCH) == Done(250, 2.0)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no total"),
        (PGBENCH.replace("processed: 250", "processed: 0"), "no total"),
        (PGBENCH.replace("transactions: 0", "transactions: 4"), "4 transactions failed"),
    ],
)
def test_any_other_run_of_pgbench_is_refused(text: str, fault: str) -> None:
    with pytest.raises(BenchError, match=fault):
        parse_pgbench(text)
