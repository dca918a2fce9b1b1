"""Ports of a sandbox, through the API server.

Kubernetes connects from the pod's network namespace, in which a sandbox with a network stack of its
own (gVisor) listens to nothing. There the connection is relayed by a program in the sandbox, whose
input and output go through the API server as those of any command.
"""

import contextlib
from collections.abc import Awaitable, Callable

from sandboxpool.client import commands, requests
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import CommandNotStarted, ForwardError, SandboxPoolError
from sandboxpool.client.io import Channel, Io, Listener
from sandboxpool.client.wire import portforward

_PING_SECONDS = 20.0
# What may have been sent before a connection turns out to be refused: a request, mostly.
_REPLAYED = 256 * 1024

_PYTHON = (
    "import os, socket, sys, threading\n"
    "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
    "def up():\n"
    "    while data := os.read(0, 65536): s.sendall(data)\n"
    "    s.shutdown(socket.SHUT_WR)\n"
    "threading.Thread(target=up, daemon=True).start()\n"
    "while data := s.recv(65536): os.write(1, data)\n"
)
# $1: the port, $2: the program for Python.
_RELAY = (
    'has() { command -v "$1" >/dev/null 2>&1; }; '
    'if has nc; then exec nc 127.0.0.1 "$1"; '
    'elif has socat; then exec socat - "TCP:127.0.0.1:$1"; '
    'elif has python3; then exec python3 -c "$2" "$1"; '
    "else echo 'the image has none of nc, socat and python3 to relay it with' >&2; exit 127; fi"
)


class Forwarding:
    """A local port whose connections go to a port of the sandbox.

    Attributes:
        error: Why the last connection that failed did so; None while all is well.
    """

    def __init__(self, target: Target, port: int) -> None:
        self.error: SandboxPoolError | None = None
        self._target = target
        self._port = port
        self._listener: Listener | None = None
        self._relays = False

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the local address."""
        self._listener = await self._target.api.io.listen(host, port, self._carry)
        return self._listener.address

    async def close(self) -> None:
        """Listen no longer, and cut the connections that there are."""
        if self._listener is not None:
            await self._listener.close()

    async def _carry(self, local: Channel) -> None:
        io = self._target.api.io
        sending = _Sending(io, local)
        task = io.start(sending.work())
        try:
            refused = "" if self._relays else await self._by_kubernetes(local, sending)
            if (self._relays or refused) and sending.replayable:
                refused = await self._by_relay(local, sending, refused)
            if refused:
                self.error = ForwardError(
                    f"port {self._port} of pod {self._target.pod}: {refused}; see that something"
                    " listens there"
                )
        except SandboxPoolError as error:
            self.error = error
        except OSError:
            pass  # the local side has closed
        finally:
            local.finish()
            await task.stop()

    async def _by_kubernetes(self, local: Channel, sending: "_Sending") -> str:
        """Carry a connection; return why it was refused, if it was."""
        target = self._target
        request = requests.forward(target.namespace, target.pod, self._port)
        socket = await target.api.websocket(request, portforward.PROTOCOLS)
        state = portforward.Forwarding()

        async def send(data: bytes) -> None:
            await socket.send(*portforward.data(data))

        async def end() -> None:
            """The protocol has no way to say so."""

        try:
            await sending.go_to(send, end)
            while not state.error:
                try:
                    message = await socket.receive(_PING_SECONDS)
                except TimeoutError:
                    await socket.ping()
                    continue
                if message is None:
                    break
                if data := state.receive(message):
                    sending.forget()
                    await local.send(data)
        finally:
            await socket.close()
        return state.error.strip()

    async def _by_relay(self, local: Channel, sending: "_Sending", refused: str) -> str:
        target, said = self._target, bytearray()
        command = ["sh", "-c", _RELAY, "sh", str(self._port), _PYTHON]
        running = await commands.start(target, command, stdin=True)
        try:
            await sending.go_to(running.send, running.end_input)
            while (chunk := await running.next_chunk()) is not None:
                if chunk.stream == "stderr":
                    said = (said + chunk.data)[-1000:]
                    continue
                self._relays = True
                sending.forget()
                await local.send(chunk.data)
        except CommandNotStarted:
            return refused or "the image has no shell to relay it with"
        finally:
            await running.close()
        if running.exit_code == 0:
            self._relays = True
            return ""
        return f"{refused}; {said.decode(errors='replace').strip()}" if sending.replayable else ""


class _Sending:
    """What a local connection sends, and where it goes.

    It is remembered until something comes back: until then it can go another way from the start.
    """

    def __init__(self, io: Io, local: Channel) -> None:
        self.replayable = True
        self._local = local
        self._lock = io.lock()
        self._sent = bytearray()
        self._ended = False
        self._send: Callable[[bytes], Awaitable[None]] | None = None
        self._end: Callable[[], Awaitable[None]] | None = None

    def forget(self) -> None:
        """It has arrived: there is no other way any more."""
        self.replayable = False
        self._sent.clear()

    async def go_to(
        self, send: Callable[[bytes], Awaitable[None]], end: Callable[[], Awaitable[None]]
    ) -> None:
        """Send it all there, from the start."""
        async with self._lock:
            self._send, self._end = send, end
            if self._sent:
                await send(bytes(self._sent))
            if self._ended:
                await end()

    async def work(self) -> None:
        """Send what comes, until the local side ends."""
        with contextlib.suppress(OSError):
            while data := await self._local.receive(None):
                async with self._lock:
                    await self._pass_on(data)
        async with self._lock:
            self._ended = True
            if self._end is not None:
                with contextlib.suppress(SandboxPoolError):
                    await self._end()

    async def _pass_on(self, data: bytes) -> None:
        if self.replayable:
            self._sent += data
            if len(self._sent) > _REPLAYED:
                self.forget()
        if self._send is not None:
            # Where it breaks, whoever receives hears of it.
            with contextlib.suppress(SandboxPoolError):
                await self._send(data)
