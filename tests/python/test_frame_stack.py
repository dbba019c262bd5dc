"""Promises of the memory of Python's frames (src/python/frame_stack.rs), in processes of their own.

A chunk that is mapped again costs a page fault at least, which the kernel counts for each thread.
"""

import subprocess
import sys

import pytest

# Calls a function with a large frame from each depth, and prints the most faults that one depth
# took. At some depth the frame does not fit into the chunk any more.
PROGRAM = """
import resource, sys, threading

CALLS = 400
exec("def callee():\\n    " + " = ".join(f"v{i}" for i in range(60)) + " = 0")

def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

def at(depth):
    if depth:
        return at(depth - 1)
    callee()
    before = faults()
    for _ in range(CALLS):
        callee()
    return faults() - before

def most():
    found.append(max(at(depth) for depth in range(300)))

found = []
if "native" in sys.argv:
    from osloxide import _native
most()
threads = [threading.Thread(target=most) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*found)
"""


def faults(*arguments: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_calls_at_the_edge_of_a_chunk_map_no_memory() -> None:
    assert max(faults("native")) < 100


def test_an_interpreter_by_itself_maps_memory_for_each_such_call() -> None:
    """What the first test would see if chunks were not kept; where not, that test shows nothing."""
    found = faults()
    if max(found) < 400:
        pytest.skip("this interpreter keeps chunks itself")
    assert min(found) >= 400
