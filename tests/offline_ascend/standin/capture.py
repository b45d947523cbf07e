"""Capture and replay on fixed addresses: a capture launches nothing, a replay runs what it holds.

A tape holds closures over raw addresses. Where it waits for a word in memory (an external event) a replay stops, and
goes on when the word is written. Between the two, tasks are updated (`torch.npu.graph_task_update_begin`).
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
    VALUE_WRITE = 9
    VALUE_WAIT = 10
    DESTROY = 11


# What a word in memory is waited for, by the number of the condition.
CONDITIONS: tuple[Callable[[int, int], bool], ...] = (
    lambda word, value: word >= value,
    lambda word, value: word == value,
    lambda word, value: bool(word & value),
    lambda word, value: bool(~(word | value) & (2**64 - 1)),
)


def word(address: int) -> ctypes.c_uint64:
    """The eight bytes at an address."""
    return ctypes.c_uint64.from_address(address)


@dataclass(frozen=True)
class Wait:
    """A tape goes on when the word holds."""

    address: int
    value: int
    condition: int

    @property
    def over(self) -> bool:
        """Whether it does."""
        return CONDITIONS[self.condition](word(self.address).value, self.value)


@dataclass
class Group:
    """Tasks that an update replaces together."""

    tasks: list[Task] = field(default_factory=list)


@dataclass
class Tape:
    """One captured graph."""

    steps: list[Group | Wait] = field(default_factory=list)


class Recorder:
    """What one fake device is capturing, what it has captured, and which replays wait."""

    def __init__(self) -> None:
        self.tape: Tape | None = None
        self.group: Group | None = None  # where tasks go: a group of the tape, or the group that is updated
        self.tapes: dict[int, Tape] = {}
        self.groups: dict[int, Group] = {}
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
            raise StandInError("a replayed graph waits for an event that nobody has recorded; a device would hang")

    def tell(self, event: Event, subject: int, other: int, size: int) -> None:
        """Take one event of the runtime."""
        match event:
            case Event.CAPTURE_BEGIN:
                self.tape = Tape()
            case Event.CAPTURE_END:
                self._captured(subject)
            case Event.REPLAY:
                for log in recordings():
                    log.replays += 1
                self._run(self.tapes[subject], 0)
            case Event.DESTROY:
                self.tapes.pop(subject, None)
            case Event.COPY:
                self._copied(subject, other, size)
            case Event.FILL:
                self.add(lambda: ctypes.memset(subject, other, size))
            case Event.GROUP_BEGIN | Event.GROUP_END | Event.UPDATE_BEGIN | Event.UPDATE_END:
                self._grouped(event, subject)
            case Event.VALUE_WRITE:
                self._written(subject, size)
            case Event.VALUE_WAIT:
                self._waits(Wait(subject, size, other))

    def _captured(self, handle: int) -> None:
        tape, self.tape, self.group = self.tape or Tape(), None, None  # a capture that failed may leave a group open
        self.tapes[handle] = tape
        for log in recordings():
            log.captures += bool(tape.steps)

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

    def _written(self, address: int, value: int) -> None:
        def write() -> None:
            word(address).value = value

        if self.recording:
            self.add(write)
            return
        write()
        waiting, self.waiting = self.waiting, []
        for tape, at in waiting:
            self._run(tape, at)

    def _waits(self, wait: Wait) -> None:
        if self.tape is not None:
            self.tape.steps.append(wait)
        elif not wait.over:
            raise StandInError("a stream waits for a value that nobody has written; the stand-ins run in order")

    def _run(self, tape: Tape, start: int) -> None:
        for at, step in enumerate(tape.steps[start:], start):
            if isinstance(step, Group):
                for task in step.tasks:
                    task()
            elif not step.over:
                self.waiting.append((tape, at))
                return


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
