"""What reached the daemon while nothing should: counted by itself and by the kernel."""

from dataclasses import dataclass, field
from pathlib import Path

from fanoutfs.bench import machine
from fanoutfs.bench.counters import Counters, counters
from fanoutfs.bench.report import Report


@dataclass(slots=True)
class Heard:
    """What reached the daemon in phases in which nothing should, and who else may be to blame."""

    phases: int = 0
    messages: list[str] = field(default_factory=list)
    pages: machine.PageWatch = field(default_factory=machine.PageWatch)
    """Begun before the first phase."""

    def listen(self, mountpoint: Path, before: Counters) -> None:
        """Add what came since: by its own counters, and read(2) calls of its fronts as the kernel counts them."""
        self.phases += 1
        after = counters(mountpoint)
        self.messages += [f"{name}={count}" for name, count in after.messages_since(before).items()]
        if after.front_reads != before.front_reads:
            self.messages.append(f"front_reads={after.front_reads - before.front_reads}")

    def judge(self, report: Report, name: str, phases: int) -> None:
        """Record the verdict over so many phases: open when somebody else took pages, which costs READs."""
        if self.phases < phases:
            report.check(name, False, f"only {self.phases} of {phases} runs finished")
            return
        found = " ".join(self.messages) or "0 messages"
        if self.messages and (lost := self.pages.lost()):
            report.check(name, None, f"{found} ({lost} meanwhile: measure again)")
        else:
            report.check(name, not self.messages, found)
