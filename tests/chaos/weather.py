"""Faults that last for a while, while a burst of claims goes on.

Each is a context manager over a stage: within it the fault is there, after it it is not. What is
drawn at random is drawn from the stage's seed.
"""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from chaos.stage import Object, Stage
from sandboxpool.api import names
from support import ApiError, invariants
from support.sabotage import CLOCK_FILE

Weather = Callable[[Stage], AbstractContextManager[None]]

_WRITES = r"/(pods|sandboxclaims|sandboxpools)"
# How long a fault that repeats pauses, in seconds: short enough for several within a burst.
_PAUSE_SECONDS = (0.1, 0.6)
_JOIN_SECONDS = 60.0


@contextmanager
def _again_and_again(stage: Stage, act: Callable[[random.Random], object]) -> Iterator[None]:
    """Repeats something with random pauses until the end; at least once."""
    draw = random.Random(stage.random.random())
    over = threading.Event()
    failures: list[Exception] = []

    def repeat() -> None:
        try:
            while True:
                act(draw)
                if over.wait(draw.uniform(*_PAUSE_SECONDS)):
                    return
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=repeat, name="weather")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_JOIN_SECONDS)
    assert not thread.is_alive(), "the weather does not end"
    if failures:
        raise failures[0]


# --- The operator ---


def the_operator_is_killed(stage: Stage) -> AbstractContextManager[None]:
    """SIGKILL at random moments, mostly in the middle of its work."""

    def act(draw: random.Random) -> None:
        stage.operator.kill()
        # Its start takes seconds, and so does the end of its former lease.
        time.sleep(draw.uniform(4.0, 12.0))

    return _again_and_again(stage, act)


def the_wall_clock_jumps(stage: Stage) -> AbstractContextManager[None]:
    """The operator's wall clock jumps by minutes, to and fro."""
    return _again_and_again(stage, lambda draw: set_clock(stage, draw.uniform(-300.0, 300.0)))


def set_clock(stage: Stage, shift: float) -> None:
    """Shifts the wall clock of an operator that was started with `shifted_clock`."""
    with Path(stage.operator.env[CLOCK_FILE]).open("r+b") as file:
        file.write(struct.pack("<d", shift))


def clock_file(folder: Path) -> Path:
    """Makes the file with the shift, which is none as yet."""
    path = folder / "clock"
    path.write_bytes(struct.pack("<d", 0.0))
    return path


# --- The API server ---


@contextmanager
def the_api_server_restarts(stage: Stage) -> Iterator[None]:
    """It dies in the middle of the burst and comes back."""
    with later(stage, lambda: stage.plane.restart_apiserver(kill=True)):
        yield


@contextmanager
def etcd_is_paused(stage: Stage) -> Iterator[None]:
    """For some seconds nothing is written or read, and all connections stay."""

    def pause() -> None:
        stage.plane.pause_etcd()
        try:
            time.sleep(stage.random.uniform(2.0, 4.0))
        finally:
            stage.plane.resume_etcd()

    with later(stage, pause):
        yield


@contextmanager
def later(stage: Stage, act: Callable[[], None], *, within: float = 1.0) -> Iterator[None]:
    """Does something once, at a random moment within so many seconds."""
    timer = threading.Timer(stage.random.uniform(0.0, within), act)
    timer.start()
    yield
    timer.join(_JOIN_SECONDS)
    assert not timer.is_alive(), "the fault does not end"


# --- The way there ---


def watches_are_cut(stage: Stage) -> AbstractContextManager[None]:
    """All connections of watches break, again and again."""
    return _again_and_again(stage, lambda _: stage.proxy.cut_watches())


@contextmanager
def watches_are_late(stage: Stage) -> Iterator[None]:
    """No watch says anything until the end; then all that was missed comes."""
    stall = stage.proxy.stall_watches()
    yield
    stall.release()


def watches_are_told_that_it_is_too_late(stage: Stage) -> AbstractContextManager[None]:
    """410 Gone, again and again, with lists in small pages."""
    stage.proxy.page_lists(3)

    def act(_: random.Random) -> None:
        stage.proxy.expire_watches(times=3)
        stage.proxy.cut_watches()

    return _again_and_again(stage, act)


@contextmanager
def answers_are_lost(stage: Stage) -> Iterator[None]:
    """A fifth of all writes takes effect, and nobody says so."""
    stage.proxy.lose_response("*", _WRITES + r"/?[^?]*$", times=None, chance=0.2)
    yield
    stage.proxy.reset()


@contextmanager
def requests_are_lost(stage: Stage) -> Iterator[None]:
    """A fifth of all requests does not arrive."""
    stage.proxy.lose_request("*", _WRITES + r"/?[^?]*$", times=None, chance=0.2)
    yield
    stage.proxy.reset()


@contextmanager
def requests_are_throttled(stage: Stage) -> Iterator[None]:
    """A third is told to come again, with a time or without, or meets a server in trouble."""
    for status, headers in (
        (429, {"Retry-After": "1"}),
        (429, {}),
        (503, {"Retry-After": "1"}),
        (503, {}),
        (500, {}),
    ):
        stage.proxy.refuse("*", _WRITES, status, times=None, headers=headers, chance=0.07)
    yield
    stage.proxy.reset()


# --- Others in the cluster ---


def others_edit_the_same_pods(stage: Stage) -> AbstractContextManager[None]:
    """Somebody writes an annotation on every pod, so that all versions are out of date."""

    def act(draw: random.Random) -> None:
        for pod in stage.api.list("Pod"):
            _patch(stage, pod, {"annotations": {"example.com/edited": str(draw.random())}})

    return _again_and_again(stage, act)


def people_strip_labels(stage: Stage) -> AbstractContextManager[None]:
    """Claimed pods lose all their labels."""

    def act(draw: random.Random) -> None:
        claimed = [pod for pod in stage.api.list("Pod") if _bound_pod(pod)]
        if claimed:
            pod = draw.choice(claimed)
            labels = dict.fromkeys(pod["metadata"]["labels"])
            _patch(stage, pod, {"labels": labels})

    return _again_and_again(stage, act)


def pods_are_deleted(stage: Stage) -> AbstractContextManager[None]:
    """Pods are deleted at random, warm ones and claimed ones."""

    def act(draw: random.Random) -> None:
        pods = stage.api.list("Pod")
        if pods:
            stage.delete_pod(draw.choice(pods))

    return _again_and_again(stage, act)


@contextmanager
def the_collector_stands_still(stage: Stage) -> Iterator[None]:
    """Neither garbage collector nor quota controller does anything until the end."""
    stage.controllers.pause_manager()
    try:
        yield
    finally:
        stage.controllers.resume_manager()


@contextmanager
def nodes_are_lost(stage: Stage) -> Iterator[None]:
    """Nodes die with their pods and come back."""
    lost: list[str] = []

    def act(draw: random.Random) -> None:
        if lost:
            stage.nodes.recover(lost.pop())
        else:
            lost.append(draw.choice(("gvisor-0", "gvisor-1", "gvisor-2")))
            stage.nodes.lose(lost[-1])

    with _again_and_again(stage, act):
        yield
    for node in lost:
        stage.nodes.recover(node)


@contextmanager
def everything_at_once(stage: Stage) -> Iterator[None]:
    """All that can come together."""
    with ExitStack() as stack:
        for weather in (
            the_operator_is_killed,
            the_collector_stands_still,
            nodes_are_lost,
            others_edit_the_same_pods,
            watches_are_cut,
            requests_are_throttled,
            answers_are_lost,
        ):
            stack.enter_context(weather(stage))
        yield


def _bound_pod(pod: Object) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return bool(invariants.claim_uids(pod)) and names.LABEL_CLAIM_UID in labels


def _patch(stage: Stage, pod: Object, metadata: Object) -> None:
    try:
        stage.api.patch("Pod", pod["metadata"]["name"], {"metadata": metadata})
    except ApiError as error:
        if error.status != 404:
            raise
