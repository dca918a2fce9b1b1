"""Persists what is known of each node in ConfigMaps of the operator's namespace.

One ConfigMap cannot hold a large fleet, and one for each node would be thousands, so records are
sharded by the hash of the node's name. Memory is authoritative: ConfigMaps are read once, at the
start, and then only written. A write sends only what has changed, with the resourceVersion seen
last, so that a late write of a former leader does not overwrite newer records. A ConfigMap that
another client changes or deletes is restored as a whole by its next write.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.util.backoff import delay_after

logger = logging.getLogger(__name__)

# With this many, each is just over half full if 5,000 nodes have four broken handlers each. They
# are created when needed.
SHARDS = 64
LABELS = {"app.kubernetes.io/managed-by": "sandboxpool"}
WRITE_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
# The API server takes at most 1 MiB of values in one ConfigMap.
MAX_SHARD_BYTES = 1_000_000

SEND_ATTEMPTS = 3

_encode = msgspec.json.Encoder().encode


def record_names(release: str) -> tuple[str, ...]:
    """The names of a release's ConfigMaps."""
    return tuple(f"{release}-nodes-{i}" for i in range(SHARDS))


class _Metadata(msgspec.Struct):
    resourceVersion: str


class _ConfigMap(msgspec.Struct):
    metadata: _Metadata
    data: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_ConfigMap).decode


class _Shard:
    """One ConfigMap as it should be.

    Attributes:
        version: the resourceVersion that was seen last; empty if it does not exist.
        values: encoded records by node.
        changed: nodes whose record is not yet written, or not yet removed.
        due: when the next write may be tried.
        failures: writes that failed in a row.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = ""
        self.values: dict[str, bytes] = {}
        self.changed: set[str] = set()
        self.due = 0.0
        self.failures = 0
        self._size = 0
        self._was_full = False

    def keep(self, node: str, value: bytes | None) -> bool:
        """Replace or remove (None) one value; return whether that is a change.

        A value that does not fit is dropped, because an object that is too large cannot be
        written. The next process probes that node again.
        """
        before = self.values.pop(node, None)
        self._size -= len(before or b"")
        if value is not None and self._size + len(value) > MAX_SHARD_BYTES:
            value = None
            if not self._was_full:
                logger.warning(
                    "ConfigMap %s is full: the next leader has to probe some nodes again", self.name
                )
            self._was_full = True
        if value is not None:
            self.values[node] = value
            self._size += len(value)
        return value != before

    def data(self, nodes: set[str]) -> dict[str, str | None]:
        """The merge patch of these nodes' records; None removes a key."""
        values = ((node, self.values.get(node)) for node in sorted(nodes))
        return {node: value.decode() if value is not None else None for node, value in values}


class NodeRecords:
    """The records of all nodes.

    Args:
        client: for the ConfigMaps.
        namespace: the operator's namespace.
        clock: a monotonic clock, in seconds.
        release: the operator's release, of which a namespace may have several.
    """

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        clock: Callable[[], float],
        release: str = names.DEFAULT_RELEASE,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._clock = clock
        self._shards = [_Shard(name) for name in record_names(release)]
        self._wake = asyncio.Event()
        self._next_write = clock()

    async def load(self) -> dict[str, dict[str, Any]]:
        """Read all records, by node; unreadable ones are logged, and removed by the next write.

        Raises:
            KubeError: a ConfigMap could not be read.
        """
        loaded = await asyncio.gather(*(self._load(shard) for shard in self._shards))
        return {node: record for records in loaded for node, record in records.items()}

    async def _load(self, shard: _Shard) -> dict[str, dict[str, Any]]:
        records = {}
        for node, value in (await self._read(shard)).items():
            if node in shard.changed:
                continue
            try:
                records[node] = msgspec.json.decode(value, type=dict[str, Any])
                shard.keep(node, value.encode())
            except UNREADABLE as error:
                logger.warning("%s: the record of node %s: %s", shard.name, node, error)
                self._change(shard, node)
        return records

    async def _read(self, shard: _Shard) -> dict[str, str]:
        try:
            found = _decode(await self._client.get(self._path(shard.name)))
        except ApiError as error:
            if not error.not_found:
                raise
            shard.version = ""
            return {}
        shard.version = found.metadata.resourceVersion
        return found.data or {}

    def put(self, node: str, record: Mapping[str, Any] | None) -> None:
        """Schedule a write of a node's record, or its removal (None), unless it is unchanged."""
        shard = self._shards[zlib.crc32(node.encode()) % SHARDS]
        if shard.keep(node, _encode(record) if record is not None else None):
            self._change(shard, node)

    def _change(self, shard: _Shard, node: str) -> None:
        if not shard.changed:
            shard.due = self._clock()
        shard.changed.add(node)
        self._wake.set()

    async def run(self) -> None:
        """Write changes, one ConfigMap a second, until cancelled."""
        while True:
            waiting = [shard for shard in self._shards if shard.changed]
            if not waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            shard = min(waiting, key=lambda s: s.due)
            wait = max(shard.due, self._next_write) - self._clock()
            if wait > 0:
                # In short steps: another shard may become due earlier.
                await asyncio.sleep(min(wait, WRITE_SECONDS))
                continue
            self._next_write = self._clock() + WRITE_SECONDS
            await self._write(shard)

    async def flush(self, seconds: float) -> None:
        """Write all changes without pauses; for shutdown, after ``run`` was cancelled.

        Args:
            seconds: how long to try; changes not written by then are lost, which is logged.
        """
        try:
            async with asyncio.timeout(seconds):
                while waiting := [shard for shard in self._shards if shard.changed]:
                    for shard in waiting:
                        await self._write(shard)
                    if any(shard.changed for shard in waiting):
                        await asyncio.sleep(FIRST_RETRY_SECONDS)
        except TimeoutError:
            lost = sum(len(shard.changed) for shard in self._shards)
            logger.warning(
                "the records of %d nodes were not written in time; the next leader probes them",
                lost,
            )

    async def _write(self, shard: _Shard) -> None:
        """Try to write the changes of one shard; on failure they stay pending."""
        nodes, shard.changed = shard.changed, set()
        written = False
        try:
            await self._send(shard, nodes)
            written = True
            shard.failures = 0
        except (KubeError, *UNREADABLE) as error:
            # An unreadable response comes from a proxy between us and the API server.
            delay = delay_after(shard.failures, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)
            shard.failures += 1
            shard.due = self._clock() + delay
            logger.warning(
                "ConfigMap %s was not written: %s; next try in %.0f s", shard.name, error, delay
            )
        finally:
            if not written:
                shard.changed |= nodes

    async def _send(self, shard: _Shard, nodes: set[str]) -> None:
        for attempt in range(1, SEND_ATTEMPTS + 1):
            try:
                if shard.version:
                    metadata = {"labels": LABELS, "resourceVersion": shard.version}
                    body = {"metadata": metadata, "data": shard.data(nodes)}
                    answer = await self._client.merge_patch(self._path(shard.name), body)
                elif shard.values:
                    answer = await self._client.create(self._path(), self._whole(shard))
                else:
                    # A create that had no clear outcome may have been carried out.
                    left = await self._read(shard)
                    if not left:
                        return
                    nodes.update(left)
                    continue
            except ApiError as error:
                is_stale = error.conflict or error.already_exists or error.not_found
                if not is_stale or attempt == SEND_ATTEMPTS:
                    raise
                # The ConfigMap is not as last seen: everything is pending, even if this fails.
                nodes.update(await self._read(shard), shard.values)
            else:
                shard.version = _decode(answer).metadata.resourceVersion
                return

    def _whole(self, shard: _Shard) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": shard.name, "namespace": self._namespace, "labels": LABELS},
            "data": shard.data(set(shard.values)),
        }

    def _path(self, name: str | None = None) -> str:
        return resource_path("v1", "configmaps", self._namespace, name)
