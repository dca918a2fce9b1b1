"""Ports of a sandbox, through the API server."""

import contextlib

from sandboxpool.client import requests
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import ForwardError, SandboxPoolError
from sandboxpool.client.io import Channel, Listener
from sandboxpool.client.wire import portforward

_PING_SECONDS = 20.0


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

    async def open(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the local address."""
        self._listener = await self._target.api.io.listen(host, port, self._carry)
        return self._listener.address

    async def close(self) -> None:
        """Listen no longer, and cut the connections that there are."""
        if self._listener is not None:
            await self._listener.close()

    async def _carry(self, local: Channel) -> None:
        target = self._target
        request = requests.forward(target.namespace, target.pod, self._port)
        try:
            socket = await target.api.websocket(request, portforward.PROTOCOLS)
        except SandboxPoolError as error:
            self.error = error
            local.close()
            return

        async def send() -> None:
            with contextlib.suppress(OSError, SandboxPoolError):
                while data := await local.receive(None):
                    await socket.send(*portforward.data(data))

        sending = target.api.io.start(send())
        state = portforward.Forwarding()
        try:
            while not state.error:
                try:
                    message = await socket.receive(_PING_SECONDS)
                except TimeoutError:
                    await socket.ping()
                    continue
                if message is None:
                    break
                if data := state.receive(message):
                    await local.send(data)
            if state.error:
                self.error = ForwardError(
                    f"port {self._port} of pod {target.pod}: {state.error.strip()}; see that"
                    " something listens there"
                )
        except SandboxPoolError as error:
            self.error = error
        except OSError:
            pass  # the local side has closed
        finally:
            local.close()
            await socket.close()
            await sending.stop()
