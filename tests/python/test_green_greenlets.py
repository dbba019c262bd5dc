"""greenlets that switch to each other: whom the end of one resumes, and with what.

Expected is what the greenlet of PyPI does with the same programs.
"""

from __future__ import annotations

import pytest
from _children import run_python

ACTIVE = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import greenlet
from greenlet import greenlet as G

def fails():
    raise KeyError("lost")

def waits():
    try:
        greenlet.getcurrent().parent.switch("ready")
    except ValueError as caught:
        return f"caught {caught}"
"""

PROGRAMS = {
    "a sibling switched to it last": (
        """
def first(x):
    return "first", second.switch(x + 1)
def other(x):
    first.switch(x + 1)
first, second = G(first), G(other)
print(first.switch(1), first.dead, second.dead)
""",
        "('first', 3) True False",
    ),
    "the sibling ends": (
        """
def begins():
    second.switch()
first, second = G(begins), G(lambda: "from the second")
print(first.switch(), first.dead, second.dead)
""",
        "from the second False True",
    ),
    "a child of a child": (
        "print(G(lambda x: G(lambda y: y * 2).switch(x) + 1).switch(5))",
        "11",
    ),
    "its parent has ended": (
        """
def outer():
    inner.parent = greenlet.getcurrent()
    return "outer"
inner = G(lambda: "inner")
print(G(outer).switch(), inner.parent.dead, inner.switch())
""",
        "outer True inner",
    ),
    "its parent has not begun": (
        """
later = G(lambda value: f"begun with {value}")
print(G(lambda: "this", later).switch(), later.dead)
""",
        "begun with this True",
    ),
    "its parent has no function": (
        """
try:
    G(lambda: None, G()).switch()
except AttributeError as error:
    print("run" in str(error))
""",
        "True",
    ),
    "it had ended before": (
        """
child = G(lambda: "ends")
child.switch()
child.parent = G(lambda value: f"the parent has {value}")
print(child.switch("this"))
""",
        "the parent has this",
    ),
    "its class has a constructor of its own": (
        """
class Counter(G):
    def __init__(self, step):
        self.step = step
    def run(self, value):
        return value + self.step
print(Counter(2).switch(5), Counter(2).parent is greenlet.getcurrent())
""",
        "7 True",
    ),
    "it fails": (
        """
child = G(fails)
try:
    G(lambda: child.switch()).switch()
except KeyError as error:
    print("failed", error)
""",
        "failed 'lost'",
    ),
    "an exception is thrown into it": (
        """
child = G(waits)
print(child.switch(), "/", child.throw(ValueError("this")), child.dead)
""",
        "ready / caught this True",
    ),
    "an exception is thrown into one that has not begun": (
        """
def wait():
    try:
        other.switch()
    except KeyError as error:
        return f"the parent has {error}"
    return "nothing"
def begin():
    unbegun.throw(KeyError("this"))
parent, other = G(wait), G(begin)
unbegun = G(fails, parent)
print(parent.switch(), unbegun.dead)
""",
        "the parent has 'this' True",
    ),
    "it is used as a generator": (
        """
def count(n):
    for number in range(n):
        greenlet.getcurrent().parent.switch(number)
child, seen = G(count), []
value = child.switch(3)
while not child.dead:
    seen.append(value)
    value = child.switch()
print(seen, value)
""",
        "[0, 1, 2] None",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_the_end_of_a_greenlet_resumes_its_parent(case: str) -> None:
    program, expected = PROGRAMS[case]
    result = run_python(ACTIVE + program)
    assert result.stdout == expected + "\n", result.stderr


def test_a_parent_that_waits_for_something_else_is_not_resumed() -> None:
    """With the greenlet of PyPI its wait would be cut short by what its child returns."""
    result = run_python(
        ACTIVE
        + """
import eventlet
from eventlet import event
child, done = G(lambda: "never taken"), event.Event()
def wakes_it():
    child.switch()
def looks():
    while not child.dead:
        eventlet.sleep(0)
    print(child.switch("nobody goes on"))
    done.send("what it waits for")
eventlet.spawn(wakes_it)
eventlet.spawn(looks)
print(done.wait())
"""
    )
    assert result.stdout == "nobody goes on\nwhat it waits for\n", result.stderr


def test_a_parent_that_cannot_be_one_is_refused() -> None:
    result = run_python(
        ACTIVE
        + """
first, second = G(), G()
second.parent = first
for parent in (second, first, None, "greenlet"):
    try:
        first.parent = parent
    except (TypeError, ValueError) as error:
        print(type(error).__name__)
"""
    )
    assert result.stdout == "ValueError\nValueError\nTypeError\nTypeError\n", result.stderr
