"""Capture and replay on fixed addresses: a capture launches nothing, a replay runs what it holds.

A tape holds closures over raw addresses. It waits for an event that its capture waits for as a stream does: a replay
stops there, and goes on when the event is recorded. So tasks can be updated between (`torch.npu.graph_task_update_*`).
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from tests.offline_ascend.standin import StandInError
from tests.offline_ascend.standin.load import libraries
from tests.offline_ascend.standin.log import recordings

Task = Callable[[], None]


class Event(IntEnum):
    """What the runtime tells; runtime.c has the same numbers."""

    CAPTURE_BEGIN = 0
    CAPTURE_END = 1
    REPLAY = 2
    COPY = 3
    FILL = 4
    GROUP_BEGIN = 5
    GROUP_END = 6
    UPDATE_BEGIN = 7
    UPDATE_END = 8
    EVENT_RECORD = 9
    EVENT_WAIT = 10
    EVENT_RESET = 11


@dataclass
class Group:
    """Tasks that an update replaces together."""

    tasks: list[Task] = field(default_factory=list)


@dataclass
class Tape:
    """One captured graph: groups of tasks, and what it does with events."""

    steps: list[Group | tuple[Event, int]] = field(default_factory=list)


class Recorder:
    """What one fake device is capturing, what it has captured, and which events are recorded."""

    def __init__(self) -> None:
        self.tape: Tape | None = None
        self.group: Group | None = None  # where tasks go: a group of the tape, or the group that is updated
        self.tapes: dict[int, Tape] = {}
        self.groups: dict[int, Group] = {}
        self.recorded: set[int] = set()
        self.waiting: list[tuple[Tape, int]] = []

    @property
    def recording(self) -> bool:
        """Whether what is launched now goes onto a tape instead."""
        return self.tape is not None or self.group is not None

    def add(self, task: Task) -> None:
        """Put a task at the end of what is recorded."""
        if self.group is not None:
            self.group.tasks.append(task)
        elif self.tape is not None:
            self.tape.steps.append(Group([task]))

    def check_idle(self) -> None:
        """Refuse to go on behind a replay that waits: the next launch of a device would wait with it."""
        if self.waiting:
            raise StandInError("a replayed graph waits for an event that nothing has recorded; a device would hang")

    def tell(self, event: Event, subject: int, other: int, size: int) -> None:
        """Take one event of the runtime."""
        match event:
            case Event.CAPTURE_BEGIN:
                self.tape = Tape()
            case Event.CAPTURE_END:
                self.tapes[subject], self.tape = self.tape or Tape(), None
                for log in recordings():
                    log.captures += 1
            case Event.REPLAY:
                for log in recordings():
                    log.replays += 1
                self._run(self.tapes[subject], 0)
            case Event.COPY:
                self._copied(subject, other, size)
            case Event.FILL:
                self.add(lambda: ctypes.memset(subject, other, size))
            case Event.GROUP_BEGIN | Event.GROUP_END | Event.UPDATE_BEGIN | Event.UPDATE_END:
                self._grouped(event, subject)
            case Event.EVENT_RECORD | Event.EVENT_WAIT | Event.EVENT_RESET:
                self._event(event, subject)

    def _copied(self, target: int, source: int, size: int) -> None:
        for log in recordings():
            log.copied.append(size)
        self.add(lambda: ctypes.memmove(target, source, size))

    def _grouped(self, event: Event, handle: int) -> None:
        if event is Event.GROUP_BEGIN and self.tape is not None:
            self.group = Group()
            self.tape.steps.append(self.group)
        elif event is Event.GROUP_END and self.group is not None:
            self.groups[handle], self.group = self.group, None
        elif event is Event.UPDATE_BEGIN:
            self.group = self.groups[handle]
            self.group.tasks.clear()
        elif event is Event.UPDATE_END:
            self.group = None
            for log in recordings():
                log.updates += 1

    def _event(self, event: Event, handle: int) -> None:
        if self.tape is not None:
            self.tape.steps.append((event, handle))
        else:
            self._do(event, handle)
            if event is Event.EVENT_RECORD:
                waiting, self.waiting = self.waiting, []
                for tape, at in waiting:
                    self._run(tape, at)

    def _do(self, event: Event, handle: int) -> None:
        if event is Event.EVENT_RECORD:
            self.recorded.add(handle)
        elif event is Event.EVENT_RESET:
            self.recorded.discard(handle)

    def _run(self, tape: Tape, start: int) -> None:
        for at, step in enumerate(tape.steps[start:], start):
            if isinstance(step, Group):
                for task in step.tasks:
                    task()
            elif step[0] is Event.EVENT_WAIT and step[1] not in self.recorded:
                self.waiting.append((tape, at))
                return
            else:
                self._do(*step)


RECORDER = Recorder()
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@CALLBACK
def observe(event: int, subject: int | None, other: int | None, size: int) -> int:
    """The runtime's observer. An exception cannot pass through C: it is printed, and becomes the runtime's error."""
    try:
        RECORDER.tell(Event(event), subject or 0, other or 0, size)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def install() -> None:
    """Let the runtime tell the recorder."""
    libraries().stand_in_observe(observe)
