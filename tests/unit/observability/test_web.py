"""The servers of probes and metrics: cost, limits and authorization."""

import asyncio
import errno
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from sandboxpool.allocation.allocator import Allocator
from sandboxpool.allocation.candidate_tracker import CandidateTracker
from sandboxpool.cluster.cache import ClusterCache
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from sandboxpool.observability import metrics as metrics_module
from sandboxpool.observability import web, webauth
from sandboxpool.observability.exposition import FRESH_SECONDS, Exposition
from sandboxpool.observability.metrics import ClusterCollector, Metrics
from sandboxpool.observability.webauth import Decision, DecisionCache, Reviewer, bearer
from sandboxpool.util.cooperative import SLICE_SECONDS
from support.builders import node, pod, pool_body, runtime

LOCAL = "127.0.0.1"
PLENTY = replace(web.METRICS_LIMITS, connections=1000, backlog=1000)


class World:
    """A registry of many pools that records each refresh."""

    def __init__(self, pools: int, pods: int, *, tick: float | None = None) -> None:
        self.cluster, self.metrics = ClusterCache(), Metrics()
        self.cluster.classes["gvisor"] = runtime()
        for i in range(20):
            self.cluster.nodes.put(None, node(f"n{i}"))
        self.pools = PoolStore(lambda old, new: None)
        for i in range(pools):
            self.pools.observe(pool_body(f"pool-{i}", uid=f"u{i}"))
            for j in range(pods):
                self.cluster.pods.put(None, pod(f"p{i}-{j}", pool_uid=f"u{i}", node=f"n{j % 20}"))
        allocator = Allocator()
        candidate_tracker = CandidateTracker(
            self.cluster,
            self.pools,
            allocator,
            is_deleting=lambda a, b: False,
            on_allocated=lambda claim: None,
        )
        self.now = 0.0
        self.tick = tick
        self.collector = ClusterCollector(
            self.cluster, self.pools, allocator, candidate_tracker, time.time, self.clock
        )
        self.metrics.registry.register(self.collector)
        self.began: list[float] = []
        self.exposition = Exposition(self.metrics.registry, self._refresh)

    def clock(self) -> float:
        """Advances by a tick at each call; the real clock if there is no tick."""
        if self.tick is None:
            return time.perf_counter()
        self.now += self.tick
        return self.now

    async def _refresh(self) -> None:
        self.began.append(time.monotonic())
        await self.collector.refresh()

    def pods_of(self, name: str) -> dict[str, float]:
        """The last count of a pool's pods by state."""
        (family,) = [m for m in self.collector.collect() if m.name == "sandboxpool_pods"]
        return {
            sample.labels["state"]: sample.value
            for sample in family.samples
            if sample.labels["pool"] == name and sample.value
        }


@asynccontextmanager
async def closing(opening: Awaitable[web.HttpServer]) -> AsyncIterator[str]:
    """Start a server on the loopback address; yield its URL."""
    server = await opening
    host, port = server.addresses[0]
    try:
        yield f"http://{host}:{port}"
    finally:
        await server.close()


def text_of(gauge: str) -> Exposition:
    """An exposition of one gauge of this name."""
    registry = CollectorRegistry()
    Gauge(gauge, "A gauge.", registry=registry)

    async def refresh() -> None:
        pass

    return Exposition(registry, refresh)


# --- Where it listens ----------------------------------------------------------------------------


async def test_no_address_means_one_socket_for_all_families() -> None:
    server = await web.serve_health(None, 0, list)
    assert [host for host, _ in server.addresses] == ["::"]
    await server.close()


@pytest.mark.parametrize("how", ["not compiled in", "switched off"])
async def test_without_ipv6_it_listens_on_ipv4(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def create_server(address: Any, **options: Any) -> socket.socket:
        if options.get("family") == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return create(address, **options)

    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: how == "switched off")
    monkeypatch.setattr(socket, "create_server", create_server)
    server = await web.serve_health(None, 0, list)
    assert [host for host, _ in server.addresses] == ["0.0.0.0"]  # noqa: S104
    await server.close()


@pytest.mark.parametrize("host", [None, LOCAL])
async def test_a_port_in_use_is_named(host: str | None) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(web.ListenError, match=rf"port {port} .*SANDBOXPOOL_LISTEN"):
            await web.serve_health(host, port, list)


# --- What a scrape costs -------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [64, 200])
async def test_the_metrics_are_rendered_at_most_once_a_second(clients: int) -> None:
    world = World(pools=500, pods=20)
    opening = web.serve_metrics(LOCAL, 0, world.exposition, limits=PLENTY)
    connector = aiohttp.TCPConnector(limit=0)
    async with closing(opening) as url, aiohttp.ClientSession(connector=connector) as session:

        async def scrape() -> bytes:
            async with session.get(f"{url}/metrics") as response:
                assert response.status == 200
                return await response.read()

        began = time.monotonic()
        for _ in range(2):
            texts = await asyncio.gather(*(scrape() for _ in range(clients)))
            assert all(b"sandboxpool_pods{" in text for text in texts)
        lasted = time.monotonic() - began
    assert 1 <= len(world.began) <= 1 + lasted / FRESH_SECONDS
    gaps = [b - a for a, b in zip(world.began, world.began[1:], strict=False)]
    assert all(gap >= FRESH_SECONDS for gap in gaps)


async def test_counting_yields_to_the_loop() -> None:
    # Between two looks at the clock more than half a slice passes: each second look gives way.
    world = World(pools=500, pods=20, tick=SLICE_SECONDS * 0.6)
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other_work())
    await world.collector.refresh()
    task.cancel()
    assert turns >= 250, "at most every second pool without a turn"


async def test_counting_one_large_pool_yields_to_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(pools=1, pods=10_000, tick=SLICE_SECONDS * 2)
    sizes: list[int] = []
    known = 0

    def looked(*_: object) -> bool:
        nonlocal known
        known += 1
        return False

    monkeypatch.setattr(world.collector._allocator, "is_allocated", looked)

    async def other_work() -> None:
        nonlocal known
        while True:
            sizes.append(known)
            known = 0
            await asyncio.sleep(0)

    task = asyncio.create_task(other_work())
    await world.collector.refresh()
    task.cancel()
    assert sum(sizes) >= 10_000 - metrics_module.PODS_PER_SLICE
    assert max(sizes) <= metrics_module.PODS_PER_SLICE


async def test_the_count_includes_changes_between_two_slices() -> None:
    world = World(pools=3, pods=200, tick=SLICE_SECONDS * 2)
    await world.collector.refresh()
    assert sum(world.pods_of("pool-1").values()) == 200

    gone = pod("p1-0", pool_uid="u1", node="n0")
    counting = asyncio.create_task(world.collector.refresh())
    await asyncio.sleep(0)
    world.cluster.pods.put(gone, None)
    world.pools.observe(pool_body("pool-2", uid="u2"), deleted=True)
    await counting
    await world.collector.refresh()
    assert sum(world.pods_of("pool-1").values()) == 199
    assert world.pods_of("pool-2") == {}
    assert sum(world.pods_of("pool-0").values()) == 200


@pytest.mark.looptime
async def test_concurrent_scrapes_share_one_text() -> None:
    computed = 0

    async def refresh() -> None:
        nonlocal computed
        computed += 1
        await asyncio.sleep(5)

    loop = asyncio.get_running_loop()
    exposition = Exposition(CollectorRegistry(), refresh, clock=loop.time)
    first = asyncio.create_task(exposition.text())
    await asyncio.sleep(1)
    others = [asyncio.create_task(exposition.text()) for _ in range(10)]
    await asyncio.sleep(1)
    # The one that began it goes away, and takes nothing from the others.
    first.cancel()
    await asyncio.gather(*others)
    await exposition.text()
    assert computed == 1
    await asyncio.sleep(FRESH_SECONDS)
    await exposition.text()
    assert computed == 2


async def test_a_failure_to_render_is_logged_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refresh() -> None:
        raise LookupError("damage")

    async with (
        closing(web.serve_metrics(LOCAL, 0, Exposition(CollectorRegistry(), refresh))) as url,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(5):
            async with session.get(f"{url}/metrics") as response:
                assert response.status == 500
                assert "log" in await response.text()
    assert [r.message for r in caplog.records].count(
        "the metrics cannot be rendered; /metrics responds with 500"
    ) == 1


async def test_prometheus_can_parse_the_text() -> None:
    world = World(pools=2, pods=3)
    async with (
        closing(web.serve_metrics(LOCAL, 0, world.exposition)) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/metrics") as response,
    ):
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    assert sum(s.value for s in families["sandboxpool_pods"].samples) == 6


# --- Whoever knocks ------------------------------------------------------------------------------


async def raw(url: str, request: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether a connection has ended without a word."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer_of(url: str, path: bytes) -> bytes:
    reader, writer = await raw(url, GET % path)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_connection_beyond_the_limit_gets_a_503() -> None:
    limits = replace(web.METRICS_LIMITS, connections=3)
    async with closing(web.serve_metrics(LOCAL, 0, text_of("x"), limits=limits)) as url:
        # They say nothing, or not all.
        idle = [await raw(url, said) for said in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n")]
        refused = await answer_of(url, b"/metrics")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in refused
        assert b"3 requests are in progress" in refused
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.05)
        assert (await answer_of(url, b"/metrics")).startswith(b"HTTP/1.1 200 ")


async def test_refused_connections_are_limited_too() -> None:
    limits = replace(web.METRICS_LIMITS, connections=2)
    server = await web.serve_metrics(LOCAL, 0, text_of("x"), limits=limits)
    url = f"http://{LOCAL}:{server.addresses[0][1]}"
    held = [await raw(url) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert (len(server.open), len(server.refused)) == (2, 2)
    assert all([await ended(reader) for reader, _ in held[4:]])
    for _, writer in held:
        writer.close()
    await server.close()


async def test_a_silent_connection_is_closed() -> None:
    limits = replace(web.METRICS_LIMITS, seconds=0.05)
    server = await web.serve_metrics(LOCAL, 0, text_of("x"), limits=limits)
    url = f"http://{LOCAL}:{server.addresses[0][1]}"
    held = [await raw(url, said) for said in (b"", b"GET /metrics HTTP/1.1\r\nA: b\r\n")]
    for reader, writer in held:
        assert await ended(reader)
        writer.close()
    assert not server.open
    await server.close()


async def test_a_connection_with_a_slow_request_is_closed() -> None:
    async def refresh() -> None:
        await asyncio.sleep(60)

    exposition = Exposition(CollectorRegistry(), refresh)
    limits = replace(web.METRICS_LIMITS, seconds=0.05)
    async with closing(web.serve_metrics(LOCAL, 0, exposition, limits=limits)) as url:
        reader, writer = await raw(url, GET % b"/metrics")
        assert await ended(reader)
        writer.close()
    exposition.close()


async def test_a_connection_serves_one_request() -> None:
    async with closing(web.serve_metrics(LOCAL, 0, text_of("x"))) as url:
        reader, writer = await raw(url, GET % b"/metrics" * 5)
        text = await reader.read()
        assert text.count(b"HTTP/1.1 200") == 1
        assert b"Connection: close" in text
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics?%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * web.MAX_LINE_BYTES),
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: %s\r\n\r\n" % (b"x" * 2 * web.MAX_FIELD_BYTES),
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n%s\r\n" % (b"A: b\r\n" * 2 * web.MAX_HEADERS),
        b"\x16\x03\x01 no HTTP\r\n\r\n",
    ],
)
async def test_large_headers_are_refused(request_: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with closing(web.serve_metrics(LOCAL, 0, text_of("x"))) as url:
        reader, writer = await raw(url, request_)
        status, _, _ = (await reader.read()).partition(b"\r\n")
        assert status.split()[1] == b"400"
        writer.close()
    assert not caplog.records, "whoever knocks writes no log"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 404),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
        ("HEAD", "/metrics", 405),
    ],
)
async def test_other_paths_and_methods_are_not_served(method: str, path: str, status: int) -> None:
    async with (
        closing(web.serve_metrics(LOCAL, 0, text_of("x"))) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url + path) as response,
    ):
        assert response.status == status


# --- Probes --------------------------------------------------------------------------------------


async def test_a_process_is_healthy_before_it_is_ready() -> None:
    missing = ["pods", "nodes"]
    async with closing(web.serve_health(LOCAL, 0, lambda: missing)) as url:
        assert (await answer_of(url, b"/healthz")).startswith(b"HTTP/1.1 200 ")
        unready = await answer_of(url, b"/readyz")
        assert unready.startswith(b"HTTP/1.1 503 ")
        assert b"not synced: pods, nodes" in unready
        missing.clear()
        assert (await answer_of(url, b"/readyz")).startswith(b"HTTP/1.1 200 ")
        assert (await answer_of(url, b"/metrics")).startswith(b"HTTP/1.1 404 ")


async def test_open_connections_do_not_lock_out_the_kubelet() -> None:
    async with closing(web.serve_health(LOCAL, 0, list)) as url:
        held = [await raw(url) for _ in range(web.HEALTH_LIMITS.connections)]
        for _ in range(3):
            assert (await answer_of(url, b"/healthz")).startswith(b"HTTP/1.1 200 ")
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_without_a_host_it_listens_on_both_families(family: socket.AddressFamily) -> None:
    address = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}[family]
    with socket.socket(family) as free:
        try:
            free.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no such addresses")
        port = free.getsockname()[1]
    server = await web.serve_health(None, port, list)
    try:
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(GET % b"/healthz")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    finally:
        await server.close()


# --- Who may read --------------------------------------------------------------------------------

READER = {"username": "prometheus", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}}


class Api:
    """Reviews as an API server does them, with a list of what was asked."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {"good": READER, "other": {"username": "app"}}
        self.allowed = {"prometheus"}
        self.asked: list[Mapping[str, Any]] = []
        self.error: KubeError | None = None
        self.answer: bytes | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.under_way = self.most = 0

    async def create(self, path: str, body: Mapping[str, Any]) -> bytes:
        self.asked.append(body)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.hold.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        if self.answer is not None:
            return self.answer
        spec = body["spec"]
        status: dict[str, Any]
        if path == "/apis/authentication.k8s.io/v1/tokenreviews":
            user = self.tokens.get(spec["token"])
            status = {"authenticated": True, "user": user} if user else {"error": "unknown"}
        else:
            assert path == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
            status = {"allowed": spec["user"] in self.allowed}
        return json.dumps({**body, "status": status}).encode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Decision.UNKNOWN),
        ("", Decision.UNKNOWN),
        ("Bearer", Decision.UNKNOWN),
        ("Bearer ", Decision.UNKNOWN),
        ("Basic good", Decision.UNKNOWN),
        ("Bearer bad", Decision.UNKNOWN),
        ("Bearer other", Decision.FORBIDDEN),
        ("Bearer good", Decision.ALLOWED),
        ("bearer   good ", Decision.ALLOWED),
    ],
)
async def test_a_token_is_accepted_and_authorized_or_refused(
    header: str | None, expected: Decision
) -> None:
    api = Api()
    assert await Reviewer(api).authorize(header) is expected
    if expected is Decision.ALLOWED:
        assert api.asked[1]["spec"] == {
            "user": "prometheus",
            "uid": "1",
            "groups": ["g"],
            "extra": {"k": ["v"]},
            "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
        }
    if bearer(header) is None:
        assert not api.asked


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"authenticated": False, "user": {"username": "prometheus"}},
        {"authenticated": True},
        {"authenticated": True, "user": {}},
        {"authenticated": True, "user": {"username": ""}},
    ],
)
async def test_an_incomplete_review_authorizes_nothing(status: dict[str, Any]) -> None:
    api = Api()
    api.answer = json.dumps({"status": status}).encode()
    assert await Reviewer(api).authorize("Bearer good") is Decision.UNKNOWN


async def test_a_denial_outweighs_an_allowance() -> None:
    api = Api()
    reviewer = Reviewer(api)
    allowed_too = {"authenticated": True, "user": READER, "allowed": True, "denied": True}
    api.answer = json.dumps({"status": allowed_too}).encode()
    assert await reviewer.authorize("Bearer good") is Decision.FORBIDDEN


async def test_every_decision_is_cached_for_a_minute() -> None:
    api, now = Api(), [0.0]
    reviewer = Reviewer(api, clock=lambda: now[0])
    for header, requests in (("Bearer good", 2), ("Bearer other", 2), ("Bearer bad", 1)):
        api.asked.clear()
        first = await reviewer.authorize(header)
        assert await reviewer.authorize(header) is first
        assert len(api.asked) == requests
    api.allowed.clear()
    now[0] = webauth.CACHED_SECONDS - 1
    assert await reviewer.authorize("Bearer good") is Decision.ALLOWED
    now[0] = webauth.CACHED_SECONDS
    assert await reviewer.authorize("Bearer good") is Decision.FORBIDDEN


@pytest.mark.parametrize(
    "error", [UnknownOutcomeError("connection refused"), ApiError(403, "Forbidden", "no right")]
)
async def test_without_a_review_there_is_no_decision(
    error: KubeError, caplog: pytest.LogCaptureFixture
) -> None:
    api = Api()
    reviewer = Reviewer(api)
    api.error = error
    assert await reviewer.authorize("Bearer good") is Decision.UNDECIDED
    assert "good" not in caplog.text
    api.error, api.answer = None, b"<html>"
    assert await reviewer.authorize("Bearer good") is Decision.UNDECIDED
    assert len(caplog.records) == 1, "one line a minute"
    api.answer = None
    assert await reviewer.authorize("Bearer good") is Decision.ALLOWED, "it is not remembered"


@pytest.mark.looptime
async def test_a_review_without_a_response_times_out() -> None:
    api = Api()
    api.hold.clear()
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await Reviewer(api).authorize("Bearer good") is Decision.UNDECIDED
    assert loop.time() - began == pytest.approx(webauth.REVIEW_SECONDS)


async def test_made_up_tokens_cause_few_concurrent_reviews_and_little_memory() -> None:
    api = Api()
    api.hold.clear()
    reviewer = Reviewer(api)
    count = 2 * webauth.MAX_CACHED
    judged = [asyncio.create_task(reviewer.authorize(f"Bearer {i}")) for i in range(count)]
    same = [asyncio.create_task(reviewer.authorize("Bearer 0")) for _ in range(10)]
    await asyncio.sleep(0.01)
    api.hold.set()
    assert set(await asyncio.gather(*judged, *same)) == {Decision.UNKNOWN}
    assert api.most == webauth.MAX_REVIEWS
    assert len(reviewer._decisions) == webauth.MAX_CACHED


def test_tokens_are_not_kept() -> None:
    answers = DecisionCache(lambda: 0.0)
    answers.put("secret", Decision.ALLOWED)
    assert list(answers._known) == [hashlib.sha256(b"secret").digest()]


@pytest.mark.parametrize(
    ("token", "broken", "status", "in_message"),
    [
        (None, False, 401, "bearer token"),
        ("bad", False, 401, "bearer token"),
        ("other", False, 403, "/metrics"),
        ("good", True, 503, "API server"),
        ("good", False, 200, "gauge_of_ours"),
    ],
)
async def test_a_scrape_gets_the_decision_of_the_api_server(
    token: str | None, broken: bool, status: int, in_message: str
) -> None:
    api = Api()
    api.error = UnknownOutcomeError("connection refused") if broken else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opening = web.serve_metrics(LOCAL, 0, text_of("gauge_of_ours"), Reviewer(api))
    async with (
        closing(opening) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/metrics", headers=headers) as response,
    ):
        assert response.status == status
        assert in_message in await response.text()
        assert response.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        assert ("Retry-After" in response.headers) == (status == 503)


async def test_a_refused_request_renders_nothing() -> None:
    world = World(pools=1, pods=1)
    async with (
        closing(web.serve_metrics(LOCAL, 0, world.exposition, Reviewer(Api()))) as url,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(3):
            async with session.get(f"{url}/metrics") as response:
                assert response.status == 401
    assert world.began == []
