"""The protocols, byte by byte."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.client.wire import archive, portforward, remotecommand
from sandboxpool.client.wire.http1 import ProtocolError, ResponseReader, encode_request
from sandboxpool.client.wire.remotecommand import Ending
from sandboxpool.client.wire.websocket import (
    FrameReader,
    Message,
    Opcode,
    accept,
    accepted_protocol,
    encode_frame,
)
from support.scriptedio import server_frame

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """The data in pieces."""
    last = 0
    for place in [*sorted({place % (len(data) + 1) for place in places} - {0}), len(data)]:
        if place > last:
            yield data[last:place]
        last = place


@pytest.mark.parametrize("data", [PLAIN, CHUNKED])
@given(places=st.lists(st.integers(0, 500)))
def test_a_response_is_the_same_however_it_is_cut(data: bytes, places: list[int]) -> None:
    reader, body = ResponseReader("GET"), b""
    for piece in cut(data, places):
        assert not reader.complete
        reader.feed(piece)
        body += reader.take_body()
    assert reader.complete
    assert reader.reusable
    assert reader.head is not None
    assert (reader.head.status, body) == (200, b"hello")


def test_what_follows_a_change_of_protocols_is_not_part_of_the_response() -> None:
    reader = ResponseReader("GET")
    reader.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nframes")
    assert reader.complete
    assert reader.take_rest() == b"frames"


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = ResponseReader("GET")
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nall of ")
    reader.feed(b"it")
    before = reader.complete
    reader.feed(b"")
    assert (before, reader.complete) == (False, True)
    assert not reader.reusable
    assert reader.take_body() == b"all of it"


@pytest.mark.parametrize("data", [PLAIN[:-1], CHUNKED[:-1], b"HTTP/1.1 200 OK\r\n"])
def test_a_response_that_breaks_off_is_no_response(data: bytes) -> None:
    reader = ResponseReader("GET")
    reader.feed(data)
    with pytest.raises(ProtocolError, match="in the middle"):
        reader.feed(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseReader("GET").feed(data)


def test_nothing_in_a_request_can_start_another_header() -> None:
    with pytest.raises(ValueError, match="line break"):
        encode_request("GET", "/", [("X", "a\r\nY: b")])


@given(
    payload=st.binary(max_size=300) | st.integers(65_530, 65_540).map(bytes),
    places=st.lists(st.integers(0, 70_000), max_size=5),
)
def test_a_message_is_the_same_however_it_is_cut(payload: bytes, places: list[int]) -> None:
    reader, got = FrameReader(), []
    for piece in cut(server_frame(payload), places):
        reader.feed(piece)
        while (message := reader.next_message()) is not None:
            got.append(message)
    assert got == [Message(Opcode.BINARY, payload)]


@given(payload=st.binary(max_size=1000), mask=st.binary(min_size=4, max_size=4))
def test_what_is_sent_is_masked(payload: bytes, mask: bytes) -> None:
    frame = encode_frame(Opcode.BINARY, payload[:3], payload[3:], mask=mask)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    assert frame.endswith(mask + masked)
    assert frame[0] == 0x82
    assert frame[1] & 0x80


def test_fragments_make_one_message_with_a_ping_between() -> None:
    reader = FrameReader()
    reader.feed(b"\x02\x01a" + b"\x89\x00" + b"\x80\x01b")
    assert reader.next_message() == Message(Opcode.PING, b"")
    assert reader.next_message() == Message(Opcode.BINARY, b"ab")


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xc2\x00", b"\x83\x00", b"\x82\x7f" + b"\x7f" * 8])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    reader = FrameReader()
    reader.feed(data)
    with pytest.raises(ProtocolError):
        reader.next_message()


def test_the_handshake_is_that_of_the_rfc() -> None:
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    assert accept(key) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    reader = ResponseReader("GET")
    reader.feed(
        f"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {accept(key)}\r\n"
        "Sec-WebSocket-Protocol: b\r\n\r\n".encode()
    )
    assert reader.head is not None
    assert accepted_protocol(reader.head, key, ("a", "b")) == "b"
    with pytest.raises(ProtocolError, match="none of c"):
        accepted_protocol(reader.head, key, ("c",))
    with pytest.raises(ProtocolError, match="does not belong"):
        accepted_protocol(reader.head, "other", ("b",))


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        ({"status": "Success"}, Ending(0)),
        (
            {
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": "exit 3",
                "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
            },
            Ending(3, "NonZeroExitCode", "exit 3"),
        ),
        (
            {"status": "Failure", "reason": "InternalError", "message": "no such file"},
            Ending(None, "InternalError", "no such file"),
        ),
    ],
)
def test_how_a_command_ended(status: dict[str, object], ending: Ending) -> None:
    assert remotecommand.decode_ending(json.dumps(status).encode()) == ending


@pytest.mark.parametrize("payload", [b"plain text", b"[]", b"\xff"])
def test_an_ending_that_nobody_understands_is_none_that_succeeded(payload: bytes) -> None:
    assert remotecommand.decode_ending(payload).exit_code is None


def test_a_forwarded_port_sends_its_number_before_the_data() -> None:
    state = portforward.Forwarding()
    assert state.receive(b"\x00\x90\x1f") == b""
    assert state.receive(b"\x01\x90\x1f") == b""
    assert state.receive(b"\x00data") == b"data"
    before = state.error
    assert state.receive(b"\x01refused") == b""
    assert (before, state.error) == ("", "refused")


@pytest.mark.parametrize("name", ["plain", "with space", "ü" * 40, "long/" * 60 + "end"])
def test_an_archive_is_what_tar_reads(name: str) -> None:
    content = b"x" * 700
    data = (
        archive.header("d", mode=0o700, directory=True)
        + archive.header(name, size=len(content), mode=0o640)
        + content
        + archive.padding(len(content))
        + archive.link("l", "target")
        + archive.END
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as packed:
        directory, member, link = packed.getmembers()
        assert directory.isdir()
        assert (member.name, member.mode) == (name, 0o640)
        file = packed.extractfile(member)
        assert file is not None
        assert file.read() == content
        assert link.linkname == "target"


@pytest.mark.parametrize(
    ("path", "place", "split"),
    [
        ("/a/b", ("/", "a/b"), ("/a", "b")),
        ("a//b/", (".", "a/b"), ("./a", "b")),
        ("/", ("/", "."), ("/", ".")),
        ("/a/../b", ("/", "b"), ("/", "b")),
    ],
)
def test_where_a_path_is(path: str, place: tuple[str, str], split: tuple[str, str]) -> None:
    assert archive.place(path) == place
    directory, name = archive.split(path)
    assert (directory.removeprefix("./"), name) == (split[0].removeprefix("./"), split[1])


@pytest.mark.parametrize("path", ["", "../x", "a/../../x", "a\0b"])
def test_what_is_no_path_in_the_sandbox(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        archive.place(path)
