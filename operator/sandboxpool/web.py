"""Probes and metrics over HTTP."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


async def serve(
    host: str, port: int, registry: CollectorRegistry, missing: Callable[[], list[str]]
) -> web.AppRunner:
    """Start to serve; the caller cleans the returned runner up.

    Args:
        host: address to listen on.
        port: port to listen on.
        registry: what /metrics shows.
        missing: names of the caches that are not yet synced; /readyz is 200 when it is empty.
    """

    async def healthz(request: web.Request) -> web.Response:
        # Answering at all is the proof: the loop runs. A task that dies ends the process.
        del request
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        del request
        waiting = missing()
        if waiting:
            return web.Response(status=503, text=f"not synced: {', '.join(waiting)}\n")
        return web.Response(text="ok\n")

    async def metrics(request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
