"""Settings from environment variables, whose names begin with SANDBOXPOOL_."""

import re
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator

PREFIX = "SANDBOXPOOL_"
_LABEL = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(Exception):
    """Settings are wrong; the message has a line for each: variable, value, what it may be."""


class Address(NamedTuple):
    """Where a server listens; without a host on all addresses of all families."""

    host: str | None
    port: int


def parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Parse the text of a variable; what code passes as a value needs no parsing."""
    return BeforeValidator(lambda given: parse(given) if isinstance(given, str) else given)


def flag(text: str) -> bool:
    """Parse true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError("use true or false")
    return text.lower() == "true"


def number(least: int, most: int) -> BeforeValidator:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"use a whole number from {least} to {most}")
        return int(text)

    return parsed(parse)


def name(otherwise: str) -> BeforeValidator:
    """Text that is not blank; otherwise the message says what to set."""

    def parse(text: str) -> str:
        if not text.strip():
            raise ValueError(otherwise)
        return text.strip()

    return parsed(parse)


def label(otherwise: str) -> BeforeValidator:
    """A name that a label or a Lease may have; otherwise the message says what to set."""

    def parse(text: str) -> str:
        if not _LABEL.fullmatch(text):
            raise ValueError(f"{otherwise}: lower case letters, digits and hyphens, at most 63")
        return text

    return parsed(parse)


def names(text: str) -> tuple[str, ...]:
    """Parse names that are separated by commas."""
    return tuple(part for part in map(str.strip, text.split(",")) if part)


def namespaces(text: str) -> tuple[str, ...]:
    """Parse names of namespaces that are separated by commas, each once."""
    found = tuple(dict.fromkeys(names(text)))
    for given in found:
        if not _LABEL.fullmatch(given):
            raise ValueError(f"{given!r:.100} cannot be the name of a namespace")
    return found


def address(text: str) -> Address:
    """Parse host:port, :port or port."""
    found = re.fullmatch(r"(?:(?:\[(.*)\]|([^:]*)):)?([0-9]{1,5})", text)
    if not found or int(found[3]) > 65535:
        raise ValueError(
            "use host:port, :port or port, with a port from 0 to 65535 and an IPv6 address in "
            "brackets, such as [::1]:8080"
        )
    return Address(found[1] or found[2] or None, int(found[3]))


Flag = Annotated[bool, parsed(flag)]
Names = Annotated[tuple[str, ...], parsed(names)]
Namespaces = Annotated[tuple[str, ...], parsed(namespaces)]
Listen = Annotated[Address, parsed(address)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], parsed(str.upper)]
