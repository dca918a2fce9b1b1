"""The WebSocket protocol that forwards one connection to a port of a pod, without I/O.

Two channels a port, the first for data, the second for an error. The first message on each repeats
the port. There is no way to close one direction.
"""

from dataclasses import dataclass, field

PROTOCOLS = ("v4.channel.k8s.io",)
_DATA, _ERROR = 0, 1


def data(payload: bytes) -> tuple[bytes, bytes]:
    """Return the parts of a message that carries data to the port."""
    return bytes((_DATA,)), payload


@dataclass(slots=True)
class Forwarding:
    """What has come on the two channels.

    Attributes:
        error: The kubelet's words; the connection is over.
    """

    error: str = ""
    _announced: set[int] = field(default_factory=set)

    def receive(self, message: bytes) -> bytes:
        """Return the data of a message; empty where it carries none."""
        channel, payload = message[0] if message else _DATA, message[1:]
        if channel not in self._announced:
            self._announced.add(channel)
            payload = payload[2:]
        if channel == _ERROR:
            self.error += payload.decode(errors="replace")
            return b""
        return payload if channel == _DATA else b""
