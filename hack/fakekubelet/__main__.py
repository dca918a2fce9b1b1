"""Fake nodes from the command line: `python -m fakekubelet --kubeconfig FILE --nodes 5`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from pathlib import Path

from fakekubelet import Access, Behaviour, Client, FakeKubelet, FakeNode

_log = logging.getLogger("fakekubelet")


def _delay(text: str) -> tuple[str, float | tuple[float, float]]:
    handler, _, seconds = text.partition("=")
    low, _, high = seconds.partition("-")
    return handler, (float(low), float(high)) if high else float(low)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fakekubelet", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=5, help="how many nodes (default 5)")
    parser.add_argument("--name", default="fake", help="what node names begin with")
    parser.add_argument(
        "--handlers",
        default="runc",
        help='comma-separated runtime handlers of each node; "none" leaves the field out',
    )
    parser.add_argument(
        "--delay",
        type=_delay,
        action="append",
        default=[],
        metavar="HANDLER=SECONDS",
        help="start-up time of a handler, fixed or a range such as runsc=0.3-1.2; repeatable",
    )
    parser.add_argument("--retry-seconds", type=float, default=10.0)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> None:
    behaviour = Behaviour(arguments.seed)
    for handler, seconds in arguments.delay:
        behaviour.delay(handler, seconds)
    access = Access.from_kubeconfig(arguments.kubeconfig)
    async with Client(access, concurrency=arguments.concurrency) as client:
        kubelet = FakeKubelet(client, behaviour, retry_seconds=arguments.retry_seconds)
        running = asyncio.create_task(kubelet.run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        for index in range(arguments.nodes):
            handlers = None if arguments.handlers == "none" else set(arguments.handlers.split(","))
            await kubelet.add_node(FakeNode(f"{arguments.name}-{index}", handlers))
        _log.info("%d nodes are up", arguments.nodes)
        with contextlib.suppress(asyncio.CancelledError):
            await running


def main() -> None:
    """Runs fake nodes until SIGINT or SIGTERM; the Node objects stay."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(_arguments()))


if __name__ == "__main__":
    main()
