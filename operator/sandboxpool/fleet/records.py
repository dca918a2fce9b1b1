"""What is known of each node, kept for the next process in ConfigMaps of the operator's namespace.

One object could not hold a large fleet, and one for each node would be thousands, so there are
some, and a node's record stands under its name in the one that the name hashes to. Memory is the
truth here: objects are read once, at the start, and from then on only written, each time only what
has changed, and only onto what was seen there: what a former leader sends late changes nothing that
is newer. A ConfigMap that somebody else writes or deletes comes back whole with its next write.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.util.backoff import delay_after

logger = logging.getLogger(__name__)

# With so many each is little more than half full if 5,000 nodes have four broken handlers each.
# They are made only when they are needed.
SHARDS = 64
NAMES = tuple(f"sandboxpool-nodes-{i}" for i in range(SHARDS))
LABELS = {"app.kubernetes.io/managed-by": "sandboxpool"}
WRITE_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
# The API server takes at most 1 MiB of values in one ConfigMap.
MAX_SHARD_BYTES = 1_000_000

SEND_ATTEMPTS = 3

_encode = msgspec.json.Encoder().encode


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
        """Replace or remove one value, for which there may be no room; whether that is a change.

        What is not kept is found out again; an object that is too large could not be written.
        """
        before = self.values.pop(node, None)
        self._size -= len(before or b"")
        if value is not None and self._size + len(value) > MAX_SHARD_BYTES:
            value = None
            if not self._was_full:
                logger.warning("%s is full: what is known of some nodes is not kept", self.name)
            self._was_full = True
        if value is not None:
            self.values[node] = value
            self._size += len(value)
        return value != before

    def data(self, nodes: set[str]) -> dict[str, str | None]:
        """What to write for these nodes; None removes a key."""
        values = ((node, self.values.get(node)) for node in sorted(nodes))
        return {node: value.decode() if value is not None else None for node, value in values}


class NodeRecords:
    """The records of all nodes.

    Args:
        client: for the ConfigMaps.
        namespace: the operator's own.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, client: ApiClient, namespace: str, clock: Callable[[], float]) -> None:
        self._client = client
        self._namespace = namespace
        self._clock = clock
        self._shards = [_Shard(name) for name in NAMES]
        self._wake = asyncio.Event()
        self._next_write = clock()

    async def load(self) -> dict[str, dict[str, Any]]:
        """Read all records, by node; what is damaged is logged, and removed with the next write.

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
        """Remember what is to be written, None to remove it; the same again costs nothing."""
        shard = self._shards[zlib.crc32(node.encode()) % SHARDS]
        if shard.keep(node, _encode(record) if record is not None else None):
            self._change(shard, node)

    def _change(self, shard: _Shard, node: str) -> None:
        if not shard.changed:
            shard.due = self._clock()
        shard.changed.add(node)
        self._wake.set()

    async def run(self) -> None:
        """Write what changes, one object a second, until cancelled."""
        while True:
            waiting = [shard for shard in self._shards if shard.changed]
            if not waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            shard = min(waiting, key=lambda s: s.due)
            wait = max(shard.due, self._next_write) - self._clock()
            if wait > 0:
                # Not for longer at once: another shard may have changed, and be due before.
                await asyncio.sleep(min(wait, WRITE_SECONDS))
                continue
            self._next_write = self._clock() + WRITE_SECONDS
            await self._write(shard)

    async def flush(self, seconds: float) -> None:
        """Write all that has changed, as fast as it goes; for the end, when ``run`` is cancelled.

        Args:
            seconds: how long to try; what is not written then is logged and lost.
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
            logger.warning("the records of %d nodes could not be written in time", lost)

    async def _write(self, shard: _Shard) -> None:
        """Try to write what has changed of one shard; what was not written stays changed."""
        nodes, shard.changed = shard.changed, set()
        written = False
        try:
            await self._send(shard, nodes)
            written = True
            shard.failures = 0
        except (KubeError, *UNREADABLE) as error:
            # Also where something between us and the API server answers in its place.
            delay = delay_after(shard.failures, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)
            shard.failures += 1
            shard.due = self._clock() + delay
            logger.warning("%s: %s, next try in %.0f s", shard.name, error, delay)
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
                unseen = error.conflict or error.already_exists or error.not_found
                if not unseen or attempt == SEND_ATTEMPTS:
                    raise
                # Whatever is there, and whatever becomes of this attempt: all is to be written.
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
