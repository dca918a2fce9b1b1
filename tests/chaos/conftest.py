"""Stages for the fault suite.

The seed of everything random is printed with each failure; CHAOS_SEED replays it. CHAOS_FULL
has the long tests run, too.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaos.stage import KINDS, LEASE, Stage, supervised
from chaos.weather import clock_file
from fakekubelet import FakeNodes
from localcluster.controlplane import ControlPlane
from support import Api
from support.controllers import Controllers
from support.faultproxy import FaultProxy
from support.fixtures import OPERATORS, operators
from support.history import History
from support.operator_process import Operator
from support.sabotage import CLOCK_FILE

HERE = Path(__file__).resolve().parent

_TEST_SECONDS = 300
_FULL_SECONDS = 3600
_PATIENCE_SECONDS = 60.0

StageMaker = Callable[..., Stage]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: part of `make chaos` only")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    full = bool(os.environ.get("CHAOS_FULL"))
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.integration)
        seconds = _FULL_SECONDS if full else _TEST_SECONDS
        item.add_marker(pytest.mark.timeout(seconds, func_only=True))
        if item.get_closest_marker("full") and not full:
            item.add_marker(pytest.mark.skip(reason="make chaos runs it"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    seed = getattr(item, "funcargs", {}).get("seed")
    if report.failed and seed is not None:
        report.sections.append(("seed", f"CHAOS_SEED={seed} draws the same again"))
    return report


@pytest.fixture(scope="session")
def seed() -> int:
    """What everything random is drawn from."""
    return int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))


@dataclass(frozen=True)
class _Running:
    """An operator behind its proxy."""

    operator: Operator
    proxy: FaultProxy
    another: Callable[[], Operator]


@contextmanager
def _behind_a_proxy(
    plane: ControlPlane,
    admin: Api,
    namespace: str,
    *,
    seed: int,
    changes: Sequence[str] = (),
    env: dict[str, str] | None = None,
) -> Iterator[_Running]:
    with FaultProxy(plane.url, plane.ca_file, seed=seed) as proxy:
        started: list[Operator] = []
        with operators(plane, admin, f"{namespace}-system", started) as start:
            operator = start(through=proxy, changes=changes, env={**LEASE, **(env or {})})

            def another() -> Operator:
                return start(through=proxy, changes=changes, env=LEASE, name="another")

            with supervised(operator):
                yield _Running(operator, proxy, another)
            proxy.reset()


class _Shared:
    """The operator that most tests share. It does not run beside another one."""

    def __init__(self, start: Callable[[str], AbstractContextManager[_Running]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._running: _Running | None = None
        self._starts = itertools.count(1)

    def get(self) -> _Running:
        """Starts it, unless it runs."""
        if self._running is None:
            self._running = self._stack.enter_context(self._start(f"shared-{next(self._starts)}"))
        return self._running

    def stop(self) -> None:
        """Stops it, if it runs."""
        self._stack.close()
        self._running = None


@pytest.fixture(scope="session")
def _shared(
    control_plane: ControlPlane, controllers: Controllers, admin: Api, seed: int
) -> Iterator[_Shared]:
    shared = _Shared(lambda name: _behind_a_proxy(control_plane, admin, name, seed=seed))
    yield shared
    shared.stop()


@pytest.fixture
def make_stage(
    control_plane: ControlPlane,
    controllers: Controllers,
    nodes: FakeNodes,
    admin: Api,
    api: Api,
    namespace: str,
    seed: int,
    tmp_path: Path,
    _shared: _Shared,
    request: pytest.FixtureRequest,
) -> Iterator[StageMaker]:
    """Makes the test's stage: with the operator that all share, or a changed one of its own."""
    with ExitStack() as stack:

        def make(
            *changes: str,
            patience: float = _PATIENCE_SECONDS,
            hasty: bool = False,
            own: bool = False,
            gaps: bool = False,
        ) -> Stage:
            if changes or own:
                _shared.stop()
                env = {CLOCK_FILE: str(clock_file(tmp_path))}
                running = stack.enter_context(
                    _behind_a_proxy(
                        control_plane, admin, namespace, seed=seed, changes=changes, env=env
                    )
                )
            else:
                running = _shared.get()
                running.proxy.reset()
            request.node.stash.setdefault(OPERATORS, []).append(running.operator)
            history = stack.enter_context(
                History(control_plane.kubeconfig, namespace, KINDS, gaps=gaps)
            )
            running.proxy.clear()
            return Stage(
                api=api,
                namespace=namespace,
                operator=running.operator,
                another=running.another,
                proxy=running.proxy,
                plane=control_plane,
                controllers=controllers,
                nodes=nodes,
                history=history,
                seed=seed,
                patience=patience,
                hasty=hasty,
            )

        yield make
