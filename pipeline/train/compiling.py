"""While a rank compiles it is at work, for minutes if need be: neither the watchdog ends it nor do the others
give it up."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch._dynamo.callback import callback_handler

from pipeline.train.meeting import Meeting


@contextmanager
def compiling_is_work(meeting: Meeting) -> Iterator[None]:
    """A context in which each compilation has the time of a rank that works alone."""
    section = ExitStack()

    def start(_: object) -> None:
        section.enter_context(meeting.alone("compiles"))

    def end(_: object) -> None:
        section.close()

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(start)
        callback_handler.remove_end_callback(end)
        section.close()
