"""The tree of trio's tasks, and what each waits for: part of what SIGUSR1 writes into the log.  Core's main thread."""

from collections.abc import Iterator
from typing import Final

import trio

_MOST_TASKS: Final = 400
"""A thousand waiting readers all look alike."""


def task_tree() -> str:
    """Return the tasks as lines, children below their parents; "" outside of trio."""
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return ""
    lines: list[str] = []
    for depth, task in _walk(root, 0):
        if len(lines) >= _MOST_TASKS:
            lines.append("...")
            break
        lines.append(f"{'  ' * depth}{task.name} {_where(task)}")
    return "tasks:\n" + "\n".join(lines)


def _walk(task: trio.lowlevel.Task | None, depth: int) -> Iterator[tuple[int, trio.lowlevel.Task]]:
    if task is None:
        return
    yield depth, task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _walk(child, depth + 1)


def _where(task: trio.lowlevel.Task) -> str:
    """Return where a task waits: its innermost frame outside of trio."""
    found = "running"
    for frame, line in task.iter_await_frames():
        name = frame.f_code.co_filename
        if "/trio/" not in name and "/outcome/" not in name:
            found = f"{name.rpartition('/fanoutfs/')[2]}:{line} {frame.f_code.co_name}"
    return found
