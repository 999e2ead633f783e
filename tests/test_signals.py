"""A notice to stop sets a mark, and nothing else."""

from __future__ import annotations

import signal
import threading

import pytest

from pagoda_bench.training.signals import notices


def test_a_notice_is_seen_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with notices() as told:
        assert not told()
        signal.raise_signal(signal.SIGTERM)
        assert told()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_handler_comes_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), notices():
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_it_only_stays_silent() -> None:
    seen: list[bool] = []

    def work() -> None:
        with notices() as told:
            seen.append(told())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
