"""A load generator for anything that is claimed by creating an object.

    python -m bench.load --kubeconfig FILE --namespace NS \
        --resource sandboxpool.io/v1alpha1/sandboxclaims --manifest claim.yaml \
        --bound status.phase=Bound burst --count 500

It creates the objects and sees them bound, in one process with one monotonic clock and a watch of
its own; latency is from the moment the POST is sent to the moment the watch shows the bound
field. Nothing is known of who binds them, so any operator can be measured. The figures are
printed as JSON. Objects stay unless --delete is given.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import yaml

from bench.boundfield import BoundField
from bench.stats import Summary, summarise
from fakekubelet.client import Access, ApiError, Client

# As many as a client of HTTP/2 in Go would have under way at once without waiting for anything.
SENDERS = 50
CLOCK = time.perf_counter


@dataclass(frozen=True)
class Subject:
    """What is claimed.

    Attributes:
        path: URL path of the collection.
        manifest: the object to create; each gets a name of its own.
        bound: what a claim that has been served says of itself.
    """

    path: str
    manifest: Mapping[str, Any]
    bound: BoundField

    @classmethod
    def of(cls, resource: str, namespace: str, manifest: Mapping[str, Any], bound: str) -> Self:
        """Make a subject of the command line's words.

        Args:
            resource: group/version/plural, or version/plural of the core group.
            namespace: where the objects are created; empty for a kind that has none.
            manifest: the object.
            bound: path=value, or a path that need only be there.
        """
        version, _, plural = resource.rpartition("/")
        if not version or not plural:
            raise ValueError(f"{resource!r} is not group/version/plural")
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        return cls(f"{root}{within}/{plural}", manifest, BoundField.parse(bound))


@dataclass
class Result:
    """What came out of one pattern of load.

    Attributes:
        seconds: from the first POST to the last claim bound.
        sent: how many POSTs were answered with success.
        refused: how many were answered with an error.
        samples_ms: latency of each claim that was bound.
        posts_ms: how long the API server took to answer each POST.
        waits_ms: how long each claim was not bound after that answer.
        cpu_seconds: what the generator itself used.
    """

    pattern: str
    seconds: float = 0.0
    sent: int = 0
    refused: int = 0
    samples_ms: list[float] = field(default_factory=list)
    posts_ms: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0

    @property
    def unbound(self) -> int:
        """Claims that were made and not bound in time."""
        return self.sent - len(self.samples_ms)

    def summary(self) -> Summary:
        """The figures."""
        return summarise(self.samples_ms, self.seconds)


class Generator:
    """Creates claims and waits until they are bound; use as an async context manager."""

    def __init__(self, access: Access, subject: Subject, *, senders: int = SENDERS) -> None:
        self._subject = subject
        self._senders = senders
        # Waiting for a sender is no part of a latency, so it is not left to the client.
        self._slots = asyncio.Semaphore(senders)
        self._client = Client(access, concurrency=senders)
        self._waiting: dict[str, asyncio.Future[float]] = {}
        run = secrets.token_hex(3)
        self._names = (f"load-{run}-{n}" for n in itertools.count())
        self._made: list[str] = []
        self._last = 0.0
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        version = await self._version()
        # Connections are opened before anything is measured.
        await asyncio.gather(*(self._version() for _ in range(self._senders)))
        self._watching = asyncio.create_task(self._watch(version))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    async def delete(self) -> None:
        """Delete every claim that was made."""

        async def one(name: str) -> None:
            with contextlib.suppress(ApiError):
                await self._client.delete(f"{self._subject.path}/{name}")

        await asyncio.gather(*map(one, self._made))

    async def _version(self) -> str:
        answer = await self._client.get(self._subject.path, limit="1")
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        decode = msgspec.json.Decoder(_Event).decode
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async for line in self._client.watch(self._subject.path, version):
                    at = CLOCK()
                    event = decode(line)
                    if event.type == "ERROR":
                        raise ApiError(0, line.decode(errors="replace"))
                    metadata = event.object["metadata"]
                    version = metadata["resourceVersion"]
                    waiting = self._waiting.get(metadata.get("name", ""))
                    if waiting is not None and self._subject.bound.holds(event.object):
                        if not waiting.done():
                            waiting.set_result(at)
                        del self._waiting[metadata["name"]]

    # --- Patterns ----------------------------------------------------------------------------

    async def closed(
        self,
        in_flight: int,
        count: int,
        *,
        seconds: float = 120.0,
        until: Callable[[], bool] = lambda: False,
    ) -> Result:
        """Keep so many claims in flight: the next is made when one is bound.

        It ends after so many claims, or earlier once ``until`` says so.
        """
        left = iter(range(count))

        async def one(result: Result) -> None:
            for _ in left:
                if until():
                    return
                await self._claim(result)

        async def load(result: Result) -> None:
            await asyncio.gather(*(one(result) for _ in range(in_flight)))

        return await self._measure(f"{in_flight} in flight", load, seconds)

    async def burst(self, count: int, *, seconds: float = 120.0) -> Result:
        """Make so many claims as fast as the API server takes them."""

        async def load(result: Result) -> None:
            await asyncio.gather(*(self._claim(result) for _ in range(count)))

        return await self._measure(f"burst {count}", load, seconds)

    async def rate(self, per_second: float, duration: float, *, seconds: float = 60.0) -> Result:
        """Make claims at fixed times, however slowly they are bound.

        A claim's latency counts from when it was due, so that a stall is seen by all it delays.
        """

        async def load(result: Result) -> None:
            began = CLOCK()
            claims = []
            for n in range(int(per_second * duration)):
                due = began + n / per_second
                await asyncio.sleep(max(0.0, due - CLOCK()))
                claims.append(asyncio.create_task(self._claim(result, due=due)))
            await asyncio.gather(*claims)

        return await self._measure(f"{per_second:g}/s", load, duration + seconds)

    async def _measure(
        self, pattern: str, load: Callable[[Result], Awaitable[None]], limit: float
    ) -> Result:
        result = Result(pattern)
        gc.collect()
        gc.disable()
        cpu, began = time.process_time(), CLOCK()
        self._last = began
        try:
            async with asyncio.timeout(limit):
                await load(result)
        except TimeoutError:
            # What is not bound by now is counted as such.
            self._waiting.clear()
        finally:
            gc.enable()
        result.seconds = self._last - began
        result.cpu_seconds = time.process_time() - cpu
        return result

    async def _claim(self, result: Result, *, due: float | None = None) -> None:
        name = next(self._names)
        bound = self._waiting[name] = asyncio.get_running_loop().create_future()
        manifest = self._subject.manifest
        body = {**manifest, "metadata": {**manifest.get("metadata", {}), "name": name}}
        try:
            async with self._slots:
                sent = CLOCK()
                await self._client.send("POST", self._subject.path, body=body)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError):
            self._waiting.pop(name, None)
            result.refused += 1
            return
        answered = CLOCK()
        result.posts_ms.append(1000 * (answered - sent))
        result.sent += 1
        self._made.append(name)
        at = await bound
        self._last = max(self._last, at)
        # The watch may be quicker than the answer.
        result.waits_ms.append(1000 * max(0.0, at - answered))
        result.samples_ms.append(1000 * (at - (sent if due is None else due)))


class _Event(msgspec.Struct):
    type: str
    object: dict[str, Any]


# --- Command line --------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespace", default="", help="where claims are made")
    parser.add_argument("--resource", required=True, metavar="GROUP/VERSION/PLURAL")
    parser.add_argument("--manifest", type=Path, required=True, help="YAML of one claim")
    parser.add_argument(
        "--bound",
        required=True,
        metavar="PATH[=VALUE]",
        help="what a served claim says, such as status.phase=Bound or "
        "status.conditions[type=Ready].status=True",
    )
    parser.add_argument("--senders", type=int, default=SENDERS, help="POSTs under way at once")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for all of it")
    parser.add_argument("--delete", action="store_true", help="delete the claims afterwards")
    parser.add_argument("--samples", action="store_true", help="print every latency too")
    patterns = parser.add_subparsers(dest="pattern", required=True)
    closed = patterns.add_parser("closed", help="so many in flight")
    closed.add_argument("--in-flight", type=int, default=1)
    closed.add_argument("--count", type=int, default=200)
    burst = patterns.add_parser("burst", help="all at once")
    burst.add_argument("--count", type=int, default=100)
    rate = patterns.add_parser("rate", help="so many a second")
    rate.add_argument("--per-second", type=float, default=10.0)
    rate.add_argument("--duration", type=float, default=10.0, help="seconds")
    return parser.parse_args()


async def _run(given: argparse.Namespace) -> Result:
    manifest = yaml.safe_load(given.manifest.read_text())
    subject = Subject.of(given.resource, given.namespace, manifest, given.bound)
    access = Access.from_kubeconfig(given.kubeconfig)
    async with Generator(access, subject, senders=given.senders) as generator:
        match given.pattern:
            case "closed":
                result = await generator.closed(given.in_flight, given.count, seconds=given.limit)
            case "burst":
                result = await generator.burst(given.count, seconds=given.limit)
            case _:
                result = await generator.rate(given.per_second, given.duration, seconds=given.limit)
        if given.delete:
            await generator.delete()
    return result


def main() -> None:
    """Measure one pattern and print what came out."""
    given = _arguments()
    result = asyncio.run(_run(given))
    figures: dict[str, Any] = {
        "pattern": result.pattern,
        **result.summary().as_dict(),
        "seconds": result.seconds,
        "refused": result.refused,
        "unbound": result.unbound,
        "generatorCpuMsPerClaim": 1000 * result.cpu_seconds / max(1, result.sent),
    }
    if given.samples:
        figures["samplesMs"] = [round(sample, 2) for sample in result.samples_ms]
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
