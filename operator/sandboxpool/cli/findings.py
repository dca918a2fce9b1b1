"""What `doctor` finds: its form, its text and its exit code."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum

from sandboxpool.cli.cluster import Object


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "Error"
    WARNING = "Warning"
    INFO = "Info"


class Outcome(IntEnum):
    """How `doctor` ends; 1 and 2 are errors of the command itself."""

    HEALTHY = 0
    WARNINGS = 3
    ERRORS = 4


_ORDER = tuple(Severity)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        severity: How bad it is.
        what: The finding in one word.
        where: The object, as kubectl names it.
        why: What the API says.
        cure: What to do.
        since: When it began, as the API has it; empty where it does not say.
    """

    severity: Severity
    what: str
    where: str
    why: str
    cure: str
    since: str = ""


def outcome(found: Sequence[Finding]) -> Outcome:
    """Return the exit code; what is only worth knowing does not change it."""
    severities = {one.severity for one in found}
    if Severity.ERROR in severities:
        return Outcome.ERRORS
    return Outcome.WARNINGS if Severity.WARNING in severities else Outcome.HEALTHY


def ordered(found: Sequence[Finding]) -> list[Finding]:
    """Return findings, the worst first."""
    return sorted(found, key=lambda one: (_ORDER.index(one.severity), one.what, one.where))


def described(found: Sequence[Finding]) -> list[str]:
    """Return findings in lines, which a terminal may wrap: nothing of them is cut."""
    lines: list[str] = []
    for one in found:
        lines += [""] if lines else []
        lines += [f"{one.severity.value}: {one.what} ({one.where})"]
        lines += [f"  why:  {one.why}", f"  cure: {one.cure}"]
    return lines


def document(facts: Sequence[tuple[str, str]], found: Sequence[Finding]) -> Object:
    """Return the facts and findings for `-o json`."""
    return {
        "facts": [{"what": what, "value": value} for what, value in facts],
        "findings": [asdict(one) for one in found],
    }
