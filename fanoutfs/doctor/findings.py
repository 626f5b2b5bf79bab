"""What a check found."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"
SKIP: Final = "skip"

EXIT_FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: OK, WARN (it will work, worse than it could), FAIL (it will not), SKIP (not to be known).

    reason: what was seen.  fix: what to do, "" when nothing is to be done.
    """

    check: str
    result: str
    reason: str
    fix: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0, or EXIT_FAILED when anything will not work."""
    return EXIT_FAILED if any(finding.result == FAIL for finding in findings) else 0
