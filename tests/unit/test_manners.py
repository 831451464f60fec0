"""What hosts are spared: robots.txt before anything else, few fetches at a time, pauses; and what ends a worker that is stuck."""

import math
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_guard import LIMITS, Answer, fetcher, reply, server
from veclip_core.download import manners as manners_module
from veclip_core.download.guard import Fetcher
from veclip_core.download.manners import Manners
from veclip_core.download.refused import Refused
from veclip_core.download.robots import RULE_BYTES, allowed, rules_about
from veclip_core.sources.blocklist import Blocklist

FOREVER = math.inf


def site(robots: bytes, body: bytes = b"picture") -> Answer:
    """Answers `robots` to the first request, which is for robots.txt, and `body` to all others."""
    return lambda client, number: client.sendall(robots if number == 1 else reply(body))


def reason(one: object, url: str, until: float = FOREVER) -> str:
    with pytest.raises(Refused) as refused:
        one.fetch(url, until)  # type: ignore[attr-defined]
    return refused.value.reason


def test_robots_txt_is_asked_first_once_and_obeyed() -> None:
    rules = b"User-agent: *\nDisallow: /\n\nUser-agent: veclip\nDisallow: /private/\nAllow: /private/open\n"
    with server(site(reply(rules))) as (host, seen), fetcher(host, robots_token="veclip") as one:
        assert reason(one, f"http://{host}/private/1.jpg") == "robots"
        assert one.fetch(f"http://{host}/1.jpg") == one.fetch(f"http://{host}/private/open") == b"picture"
        paths = [request.split()[1] for request in seen]
    assert paths == [b"/robots.txt", b"/1.jpg", b"/private/open"]
    with server(site(reply(rules))) as (host, _), fetcher(host, robots_token="another") as one:
        assert reason(one, f"http://{host}/1.jpg") == "robots"
    with server(site(reply(b"picture"))) as (host, seen), fetcher(host) as one:
        assert one.fetch(f"http://{host}/1.jpg") == b"picture"
        assert len(seen) == 1, "without a token none is asked for"


@pytest.mark.parametrize(
    ("robots", "expected"),
    [
        (reply(b"", "404 Not Found"), None),
        (reply(b"", "403 Forbidden"), None),
        (reply(b""), None),
        (reply(b"\xff\xfe<html>no rules at all" * 100), None),
        (reply(b"User-agent: *\nDisallow:\n"), None),
        (reply(b"User-agent: *\nDisallow: /0\n" + b"#" * 600_000), "robots"),
        (reply(b"", "503 Busy"), "robots_http_5xx"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nUser-agent: *\n", "timeout"),
        (b"", "timeout"),
        (b"no http\r\n", "reset"),
    ],
)
def test_what_a_robots_txt_that_is_none_means(robots: bytes, expected: str | None) -> None:
    """RFC 9309: what is not there allows everything, what can't be reached nothing; of a long one its beginning counts."""
    with (
        server(site(robots)) as (host, seen),
        fetcher(host, robots_token="veclip", timeout_s=0.5, deadline_s=2.0) as one,
    ):
        if expected is None:
            assert one.fetch(f"http://{host}/0.jpg") == b"picture"
        else:
            assert [reason(one, f"http://{host}/0{n}.jpg") for n in range(2)] == [expected, expected]
            assert len(seen) == 1, "nothing but robots.txt was asked for, and that once"


def test_a_robots_txt_that_fails_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_once(client: socket.socket, number: int) -> None:
        client.sendall(
            reply(b"", "503 Busy") if number == 1 else reply(b"", "404 No") if number == 2 else reply(b"picture")
        )

    with server(fails_once) as (host, seen), fetcher(host, robots_token="veclip", retries=1) as one:
        assert one.fetch(f"http://{host}/1.jpg") == b"picture", "at once, as a picture would be"
        assert [request.split()[1] for request in seen] == [b"/robots.txt", b"/robots.txt", b"/1.jpg"]
    monkeypatch.setattr(manners_module, "FAILURE_FOR_S", 0.2)
    with server(fails_once) as (host, _), fetcher(host, robots_token="veclip") as one:
        assert reason(one, f"http://{host}/1.jpg") == "robots_http_5xx"
        time.sleep(0.25)
        assert one.fetch(f"http://{host}/1.jpg") == b"picture", "a host is not lost for good"


@pytest.mark.parametrize(
    ("text", "barred", "open_"),
    [
        ("User-agent: a\nUser-agent: veclip\nDisallow: /x\n\nUser-agent: *\nDisallow: /", "/x1", "/y"),
        ("user-agent: *\ndisallow: /x # remark\nallow: /x/y$\n", "/x/y/z", "/x/y"),
        ("User-agent: VeClip/1.0\nDisallow: /*.jpg$", "/a/b.jpg", "/a/b.png"),
        ("Disallow: /x\nUser-agent: *\nDisallow: /y\nUser-agent: other\nDisallow: /z", "/y", "/z"),
        ("User-agent: *\nDisallow: /x\n\nSitemap: http://a/b\nUser-agent: *\nDisallow: /y", "/y", "/z"),
    ],
)
def test_the_rules_about_us(text: str, barred: str, open_: str) -> None:
    rules = rules_about(text, "veclip")
    assert not allowed(rules, f"http://a.example{barred}")
    assert allowed(rules, f"http://a.example{open_}")


def test_a_robots_txt_of_strangers_costs_little() -> None:
    """A parser that keeps every rule for every agent takes gigabytes for this one."""
    hostile = "".join(f"user-agent: a{n}\n" for n in range(20_000)) + "allow: /\n" * 20_000
    started = time.process_time()
    assert rules_about(hostile, "veclip") == ""
    assert len(rules_about("user-agent: *\n" + "disallow: /x\n" * 50_000, "veclip")) < 2 * RULE_BYTES
    assert time.process_time() - started < 2.0


def test_a_redirect_meets_the_other_hosts_rules() -> None:
    with server(site(reply(b"User-agent: *\nDisallow: /"))) as (closed, asked):
        moved = reply(b"", "302 Found", f"Location: http://{closed}/1.jpg")
        with (
            server(lambda client, number: client.sendall(reply(b"", "404 No") if number == 1 else moved)) as (host, _),
            fetcher(host, robots_token="veclip", allowed_hosts=frozenset({host, closed})) as one,
        ):
            assert reason(one, f"http://{host}/1.jpg") == "robots"
        assert [request.split()[1] for request in asked] == [b"/robots.txt"]


def test_a_redirect_to_a_blocked_domain_is_not_followed() -> None:
    moved = reply(b"", "302 Found", "Location: http://sub.blocked.example/1.jpg")
    limits = replace(LIMITS, robots_token="veclip")
    with server(lambda client, number: client.sendall(reply(b"", "404 No") if number == 1 else moved)) as (host, _):
        one = Fetcher(
            replace(limits, allowed_hosts=frozenset({host})), blocked=Blocklist(frozenset({"blocked.example"}))
        )
        assert reason(one, f"http://{host}/1.jpg") == "blocked_domain"
        one.close()


def test_a_redirect_late_in_the_day_does_not_outlast_the_deadline() -> None:
    """The other host's robots.txt takes what is left of the time, and then its picture drips."""

    def drips(client: socket.socket, number: int) -> None:
        if number == 1:
            time.sleep(0.8)
            client.sendall(reply(b"", "404 No"))
        else:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(100):
                client.sendall(b"x")
                time.sleep(0.1)

    with server(drips) as (slow, _):
        moved = reply(b"", "302 Found", f"Location: http://{slow}/1.jpg")

        def redirects(client: socket.socket, number: int) -> None:
            time.sleep(0.4)
            client.sendall(reply(b"", "404 No") if number == 1 else moved)

        with (
            server(redirects) as (host, _),
            fetcher(host, robots_token="veclip", deadline_s=1.0, allowed_hosts=frozenset({host, slow})) as one,
        ):
            started = time.monotonic()
            assert reason(one, f"http://{host}/1.jpg") == "timeout"
            assert time.monotonic() - started < 4.0


def manners(connections: int = 2, pause_s: float = 0.0, robots: bytes | None = None, **how: object) -> Manners:
    return Manners(connections, pause_s, None if robots is None else "veclip", lambda url: robots or b"", **how)  # type: ignore[arg-type]


def starts_of(spared: Manners, urls: list[str], hold_s: float = 0.03) -> tuple[list[float], int]:
    """When each URL's turn began, sorted, and how many were held at once at most."""
    starts: list[float] = []
    held = most = 0
    lock = threading.Lock()

    def take(url: str) -> None:
        nonlocal held, most
        with spared.turn(url, FOREVER):
            with lock:
                starts.append(time.monotonic())
                held += 1
                most = max(most, held)
            time.sleep(hold_s)
            with lock:
                held -= 1

    threads = [threading.Thread(target=take, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(starts), most


def test_few_fetches_at_one_host_at_a_time() -> None:
    assert starts_of(manners(), [f"http://a.example/{n}" for n in range(10)])[1] == 2
    assert starts_of(manners(), [f"http://host{n}.example/" for n in range(8)], 0.2)[1] == 8
    for origin, name in (("http://a.example:8080", "a.example:8080"), ("http://a.example", "a.example:80")):
        own = manners(own_hosts=frozenset({name}))
        assert starts_of(own, [f"{origin}/{n}" for n in range(8)], 0.2)[1] == 8


@pytest.mark.parametrize(("pause_s", "robots"), [(0.1, None), (0.0, b"User-agent: *\nCrawl-delay: 0.1\n")])
def test_a_pause_between_two_starts(pause_s: float, robots: bytes | None) -> None:
    starts, _ = starts_of(manners(4, pause_s, robots), [f"http://a.example/{n}" for n in range(5)], 0.0)
    assert starts[-1] - starts[0] >= 0.39


def test_a_busy_host_does_not_hold_a_shard_up_beyond_its_deadline() -> None:
    spared = manners(1)
    soon = time.monotonic() + 0.05
    with (
        spared.turn("http://a.example/1", FOREVER),
        pytest.raises(Refused, match="host_busy"),
        spared.turn("http://a.example/2", soon),
    ):
        raise AssertionError
    slow = manners(4, 60.0)
    with slow.turn("http://a.example/1", FOREVER):
        pass
    with pytest.raises(Refused, match="host_busy"), slow.turn("http://a.example/2", time.monotonic() + 1.0):
        raise AssertionError
    with server(site(b"")) as (host, seen), fetcher(host) as one:
        assert reason(one, f"http://{host}/1.jpg", until=time.monotonic()) == "no_time"
        assert not seen


def test_a_process_that_is_stuck_ends_itself_and_says_where() -> None:
    code = (
        "import time; from veclip_core.download.deadlines import killed_after\n"
        "with killed_after(60, 'quick'): pass\n"
        "with killed_after(0.2, 'download part-00000/00007'): time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert done.returncode == -9
    assert "download part-00000/00007 did not end" in done.stderr
    assert "line 3" in done.stderr, "the trace of what it was stuck in"
