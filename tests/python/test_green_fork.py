"""A child that a greenthread forks is a process of its own.

Rules: threading (Library Reference), of which the thread that forks is the main one in the child.
"""

from __future__ import annotations

import pytest
from _children import run_python

PROGRAM = """
import os, threading
import eventlet

def fork():
    pid = os.fork()
    if pid == 0:
        assert threading.current_thread() is threading.main_thread()
        assert threading.enumerate() == [threading.main_thread()]
        helper = threading.Thread(target=eventlet.sleep, args=(0.05,))
        helper.start()
        threading._shutdown()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

status = CALL
if threading.main_thread().ident == threading.get_ident():
    print(status)
"""


@pytest.mark.parametrize("call", ["eventlet.spawn(fork).wait()", "eventlet.tpool.execute(fork)"])
def test_a_child_of_a_greenthread_has_a_main_thread_that_can_end(call: str) -> None:
    text = PROGRAM.replace("CALL", call)
    prelude = "from osloxide.activation import import_hook\n"
    prelude += "import_hook.install(deferred=True, serve_eventlet=True)\nimport eventlet.tpool\n"

    done = run_python(prelude + text)

    assert done.stderr == ""
    assert done.stdout.split()[-1:] == ["7"], done.stdout
