"""What reached the daemon while nothing should: counted by itself and by the kernel."""

from dataclasses import dataclass, field
from pathlib import Path

from fanoutfs.bench import machine
from fanoutfs.bench.counters import Counters, counters
from fanoutfs.bench.report import Report


@dataclass(slots=True)
class Heard:
    """What reached the daemon in phases in which nothing should, and whether somebody else is to blame."""

    phases: int = 0
    messages: list[str] = field(default_factory=list)
    foreign_drops: int = 0

    def listen(self, mountpoint: Path, before: Counters, drops_before: int) -> None:
        """Add what came since: by its own counters, and read(2) calls of its fronts as the kernel counts them."""
        self.phases += 1
        after = counters(mountpoint)
        self.messages += [f"{name}={count}" for name, count in after.messages_since(before).items()]
        if after.front_reads != before.front_reads:
            self.messages.append(f"front_reads={after.front_reads - before.front_reads}")
        self.foreign_drops += machine.cache_drops() - drops_before

    def judge(self, report: Report, name: str, phases: int) -> None:
        """Record the verdict over so many phases: open when somebody else dropped the page cache, which costs READs."""
        if self.phases < phases:
            report.check(name, False, f"only {self.phases} of {phases} runs finished")
            return
        found = " ".join(self.messages) or "0 messages"
        if self.foreign_drops:
            found += f" (somebody else dropped the page cache {self.foreign_drops} times meanwhile: measure again)"
        report.check(name, True if not self.messages else None if self.foreign_drops else False, found)
