"""Tasks are delivered to sandboxes that answer what they like."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from sandboxpool.opensandbox import executor
from sandboxpool.opensandbox.executor import DeliveryError, Executor, TaskEndedError
from support.opensandbox.executor import (
    BROKEN,
    CUT,
    ENDLESS,
    NO_HTTP,
    REFUSES,
    SILENT,
    TRICKLES,
    FakeSandboxes,
    Manner,
    Reply,
)

PROCESS = msgspec.Raw(b'{"command": ["sleep", "1"], "env": [{"name": "A", "value": "b"}]}')


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[FakeSandboxes]:
    with FakeSandboxes() as running:
        yield running


@pytest.fixture
async def tasks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Executor]:
    for name in ("REQUEST_SECONDS", "DELIVERY_SECONDS", "READY_SECONDS", "TASK_CHECK_SECONDS"):
        monkeypatch.setattr(executor, name, 0.4)
    async with Executor() as running:
        yield running


@pytest.fixture
def address(sandboxes: FakeSandboxes) -> str:
    sandboxes.behave(Manner())
    return sandboxes.address(1)


async def test_a_task_is_delivered_as_it_was_received_and_started_once(
    sandboxes: FakeSandboxes, tasks: Executor, address: str
) -> None:
    await tasks.deliver(address, "s-0", PROCESS)
    await tasks.deliver(address, "s-0", PROCESS)
    assert sandboxes.started(address) == ["s-0"]
    first = sandboxes.requests(address, "/setTasks")[0]
    assert first.body == [{"name": "s-0", "process": msgspec.json.decode(PROCESS)}]
    assert await tasks.wait_until_ready(address, "s-0")


async def test_an_executor_that_listens_late_gets_the_task(
    sandboxes: FakeSandboxes, tasks: Executor, address: str
) -> None:
    sandboxes.behave(Manner(executor=REFUSES), address)
    delivery = asyncio.create_task(tasks.deliver(address, "s-0", PROCESS))
    await asyncio.sleep(0.1)
    assert not delivery.done()
    await asyncio.to_thread(sandboxes.behave, Manner(), address)
    await delivery
    assert sandboxes.started(address) == ["s-0"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (REFUSES, "cannot connect: Connect"),
        (SILENT, "no answer within"),
        (BROKEN, "answered 500: it is broken"),
        (ENDLESS, "more than 65536 bytes"),
        (TRICKLES, "no answer within"),
        (NO_HTTP, "not HTTP"),
        (CUT, "closed the connection"),
        (Reply(status=404, text="no"), "answered 404: no"),
        (Reply(location="http://127.0.0.1:1/elsewhere"), "answered 307"),
    ],
    ids=["refuses", "silent", "broken", "endless", "trickles", "no-http", "cut", "404", "redirect"],
)
async def test_what_is_not_taken_is_reported_with_port_and_answer(
    sandboxes: FakeSandboxes, tasks: Executor, address: str, reply: Reply, said: str
) -> None:
    await asyncio.to_thread(sandboxes.behave, Manner(executor=reply), address)
    before = sandboxes.sent_bytes
    with pytest.raises(DeliveryError, match="task-executor on port 5758") as error:
        await tasks.deliver(address, "s-0", PROCESS)
    assert said in str(error.value)
    # What the kernel's buffers hold was sent, too; without a limit it would be gigabytes.
    assert sandboxes.sent_bytes - before < 50_000_000


async def test_an_answer_is_quoted_on_one_line_and_cut(
    sandboxes: FakeSandboxes, tasks: Executor, address: str
) -> None:
    hostile = Reply(status=400, text="one\n\x1b[31mtwo\u202e " + "x" * 5000)
    await asyncio.to_thread(sandboxes.behave, Manner(executor=hostile), address)
    with pytest.raises(DeliveryError) as error:
        await tasks.deliver(address, "s-0", PROCESS)
    text = str(error.value)
    assert text.isprintable()
    assert "one [31mtwo xxx" in text
    assert len(text) < 400


@pytest.mark.parametrize("exit_code", [0, 3])
async def test_a_task_that_has_ended_is_reported_with_its_exit_code(
    sandboxes: FakeSandboxes, tasks: Executor, address: str, exit_code: int
) -> None:
    ended = Manner(exit_code=exit_code, message="no such file")
    await asyncio.to_thread(sandboxes.behave, ended, address)
    with pytest.raises(TaskEndedError, match=f"exit code {exit_code} .*no such file"):
        await tasks.deliver(address, "s-0", PROCESS)


async def test_execd_is_waited_for_and_its_absence_is_no_error(
    sandboxes: FakeSandboxes, tasks: Executor, address: str
) -> None:
    await asyncio.to_thread(sandboxes.behave, Manner(execd=REFUSES), address)
    await tasks.deliver(address, "s-0", PROCESS)
    assert not await tasks.wait_until_ready(address, "s-0")
    assert sandboxes.requests(address, "/getTasks")


@pytest.mark.parametrize("given", ["", "localhost", "10.0.0.1@evil.test", "http://10.0.0.1"])
async def test_only_ip_addresses_are_connected_to(tasks: Executor, given: str) -> None:
    with pytest.raises(DeliveryError, match="no IP address"):
        await tasks.deliver(given, "s-0", PROCESS)


def test_an_ipv6_address_is_a_host_in_brackets() -> None:
    assert executor._host("fd00::1") == "[fd00::1]"
    assert executor._host("10.1.2.3") == "10.1.2.3"


async def test_proxies_of_the_environment_are_not_used(
    sandboxes: FakeSandboxes, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with Executor() as running:
        await running.deliver(address, "s-0", PROCESS)
    assert sandboxes.started(address) == ["s-0"]
