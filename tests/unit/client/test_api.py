"""Requests, watches and connections."""

from __future__ import annotations

import pytest

from sandboxpool.client import claims, requests
from sandboxpool.client.blocking import run
from sandboxpool.client.errors import AccessDenied, ApiError, ConnectionLost, NotInstalled
from support.scriptedcluster import api_of, script, settings
from support.scriptedio import Step, answer, failure, stream

GET = requests.get_claim("ns", "c")
CREATE = requests.create_claim("ns", claims.manifest("p"))
CREATE_NAMED = requests.create_claim("ns", claims.manifest("p", name="mine"))


def test_requests_share_a_connection_and_a_watch_takes_its_own() -> None:
    api, io = api_of(script(answer({}), stream(), answer({})))
    run(api.call(GET))
    run(api.watch(requests.watch_claims("ns", "1", name="c", seconds=9)))
    run(api.call(GET))
    assert [asked.connection for asked in io.asked] == [0, 1, 0]
    assert io.asked[0].headers["authorization"] == "Bearer t0ken"
    assert io.asked[1].parameters["fieldSelector"] == "metadata.name=c"


def test_a_connection_that_has_ended_is_not_used_again() -> None:
    api, io = api_of(script(answer({}), answer({}), answer({}, Connection="close"), answer({})))
    run(api.call(GET))
    io.channels[0].stale = True
    run(api.call(GET))
    assert io.channels[0].closed
    io.now += 60
    run(api.call(GET))
    run(api.call(GET))
    assert [asked.connection for asked in io.asked] == [0, 1, 2, 3]


@pytest.mark.parametrize("end", [None, ConnectionResetError("reset")])
def test_what_may_be_repeated_is_when_an_idle_connection_ends(end: Step) -> None:
    api, _io = api_of(script(answer({}), [end], answer({"a": 1}), [end], answer({"b": 2})))
    run(api.call(GET))
    assert run(api.call(GET)) == {"a": 1}
    assert run(api.call(CREATE_NAMED)) == {"b": 2}


@pytest.mark.parametrize("end", [None, ConnectionResetError("reset")])
def test_a_claim_without_a_name_is_not_made_twice(end: Step) -> None:
    api, io = api_of(script(answer({}), [end]))
    run(api.call(GET))
    with pytest.raises(ConnectionLost):
        run(api.call(CREATE))
    assert len(io.asked) == 2


def test_a_new_connection_that_breaks_is_an_error() -> None:
    api, io = api_of(script([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", None]))
    with pytest.raises(ConnectionLost, match="broke off"):
        run(api.call(GET))
    assert io.channels[0].closed


def test_an_api_server_that_cannot_be_reached_is_named() -> None:
    api, io = api_of(script())
    io.refusing = 1
    with pytest.raises(ConnectionLost, match=r"api\.test cannot be reached: refused"):
        run(api.call(GET))


def test_silence_is_not_waited_for_forever() -> None:
    api, io = api_of(script([]))
    with pytest.raises(ConnectionLost, match="not answered for 30 s"):
        run(api.call(GET))
    assert io.now == 1030


def test_a_busy_api_server_is_retried_after_retry_after() -> None:
    busy = answer({}, 429, Retry_After="2")
    api, io = api_of(script(busy, busy, answer({"a": 1})))
    assert run(api.call(CREATE)) == {"a": 1}
    assert io.now == 1004
    api, io = api_of(lambda asked: answer({"message": "too many"}, 429, Retry_After="60"))
    with pytest.raises(ApiError, match="too many"):
        run(api.call(CREATE))
    assert (io.now, len(io.asked)) == (1020, 5)


def test_a_right_that_is_missing_is_named() -> None:
    message = (
        'sandboxclaims.sandboxpool.io is forbidden: User "u" cannot create resource'
        ' "sandboxclaims" in API group "sandboxpool.io" in the namespace "ns"'
    )
    api, _ = api_of(script(failure(403, message, "Forbidden")))
    with pytest.raises(AccessDenied, match="no right to create") as denied:
        run(api.call(CREATE))
    assert denied.value.verb == "create"
    assert denied.value.resource == "sandboxclaims.sandboxpool.io"
    assert denied.value.namespace == "ns"


@pytest.mark.parametrize(
    ("response", "error", "text"),
    [
        (failure(403, "exceeded quota: q", "Forbidden"), ApiError, "exceeded quota"),
        (failure(401, "Unauthorized", "Unauthorized"), ApiError, "renew the credentials"),
        ([b"HTTP/1.1 404 X\r\nContent-Length: 18\r\n\r\n404 page not found"], NotInstalled, "CRDs"),
        (failure(404, "no c", "NotFound", name="c"), ApiError, "no c"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>"], ConnectionLost, "no JSON"),
        ([b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\noops"], ApiError, "oops"),
    ],
)
def test_an_invalid_response_is_described(
    response: list[Step], error: type[Exception], text: str
) -> None:
    api, _io = api_of(script(response))
    with pytest.raises(error, match=text) as raised:
        run(api.call(GET))
    assert type(raised.value) is error


def test_a_proxy_is_asked_for_the_api_server() -> None:
    api, io = api_of(script([b"HTTP/1.1 200 OK\r\n\r\n"], answer({"a": 1})))
    api.settings = settings(
        host="http://api.test:6443", proxy="http://us%20er:pw@proxy.test:3128", no_proxy=""
    )
    assert run(api.call(GET)) == {"a": 1}
    assert (io.asked[0].method, io.asked[0].path) == ("CONNECT", "api.test:6443")
    assert io.asked[0].headers["proxy-authorization"] == "Basic dXMgZXI6cHc="
    assert "authorization" not in io.asked[0].headers

    api, io = api_of(script([b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n"]))
    api.settings = settings(proxy="http://proxy.test:3128", no_proxy="")
    with pytest.raises(ConnectionLost, match=r"by the proxy proxy\.test:3128: it says 407 Who"):
        run(api.call(GET))
    assert io.channels[0].closed
