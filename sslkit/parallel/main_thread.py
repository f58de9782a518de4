"""Interrupting the main thread from another one."""

from __future__ import annotations

import _thread
import signal
import threading


def interrupt_main_thread(number: signal.Signals = signal.SIGTERM) -> None:
    """Has the main thread handle a signal now, also where it sleeps or reads. Does nothing where
    the signal has no handler, and would end the process."""
    if not callable(signal.getsignal(number)):
        return
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)
    else:  # Windows: it is handled when what the thread waits for is over
        _thread.interrupt_main(number)
