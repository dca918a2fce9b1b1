"""What the end of a block does with a sandbox, with and without asyncio."""

from __future__ import annotations

import asyncio

import pytest

from sandboxpool.client.aio import AsyncSandbox
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import AccessDenied
from sandboxpool.client.sync import Sandbox
from support.scriptedcluster import DELETED, api_of, claim, script
from support.scriptedio import ScriptedIo, Step, failure

REFUSED = failure(403, 'User "app" cannot delete resource "sandboxclaims"')
KINDS = pytest.mark.parametrize("kind", [Sandbox, AsyncSandbox])


class InsideError(Exception):
    """What the application's own code raises."""


def use(
    kind: type[Sandbox] | type[AsyncSandbox],
    answer: list[Step],
    *,
    keep: bool = False,
    error: Exception | None = None,
) -> ScriptedIo:
    """Enter a block and leave it, by an error if one is given."""
    api, io = api_of(script(answer))
    target = Target(api, claim("Bound"), "")

    def inside() -> None:
        if error is not None:
            raise error

    async def asynchronously(sandbox: AsyncSandbox) -> None:
        async with sandbox:
            inside()

    sandbox = kind(target, keep=keep)
    if isinstance(sandbox, AsyncSandbox):
        asyncio.run(asynchronously(sandbox))
    else:
        with sandbox:
            inside()
    return io


@KINDS
def test_the_end_of_a_block_releases_the_sandbox(kind: type[Sandbox]) -> None:
    assert [asked.method for asked in use(kind, DELETED).asked] == ["DELETE"]


@KINDS
def test_what_is_kept_is_not_released(kind: type[Sandbox]) -> None:
    assert use(kind, DELETED, keep=True).asked == []


@KINDS
def test_a_release_that_fails_is_an_error(kind: type[Sandbox]) -> None:
    with pytest.raises(AccessDenied):
        use(kind, REFUSED)


@KINDS
def test_a_release_that_fails_hides_no_other_error(kind: type[Sandbox]) -> None:
    with pytest.raises(InsideError):
        use(kind, REFUSED, error=InsideError())
