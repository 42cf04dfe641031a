"""The process's own settings."""

import ctypes
import platform

from polyview import hosts


def test_freed_memory_is_kept_where_that_is_known_to_work(monkeypatch):
    asked = []

    class Library:
        def mallopt(self, option, value):
            asked.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    hosts.keep_freed_memory()
    assert asked == [(-2, 2**27)]  # M_TOP_PAD
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    hosts.keep_freed_memory()
    monkeypatch.delenv("MALLOC_TOP_PAD_")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # as on macOS
    hosts.keep_freed_memory()
    assert len(asked) == 1
