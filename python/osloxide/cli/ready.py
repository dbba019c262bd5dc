"""``osloxide status --ready NAME``: a health probe, told by its exit status alone.

Owns what ready means: the launcher lives, and every slot of it has a worker that is ready or drains
while its successor starts. Looks at the scoreboard and asks the service nothing, so it holds for
APIs and RPC services alike.

A probe is started every few seconds. This file is therefore a program by itself, which
``python -IS FILE NAME`` runs without site-packages: it imports nothing that is not built in, and
reads the shared memory by itself. A name is looked up in the index of launchers first, and among
all processes where no entry of it holds. The first fields of its header and of a row are where
``src/scoreboard`` has them; a test compares.
"""

import posix
import sys

# Bytes, since any user names files there; what lies there is a hint that is checked.
_INDEXES = b"/dev/shm"
_MEMFD = "/memfd:osloxide-scoreboard"
_MAGIC = b"osloxide"
_HEADER_BYTES = 4096
_NAME = slice(36, 36 + 128)
_STATES = ("free", "starting", "running", "draining", "killing", "waiting", "gone", "replaced")
_SERVES = ("running", "draining")
_NOT_SHOWN = ("free", "replaced")


def command(name: str) -> list[str]:
    """The cheapest command line that probes *name*: of this program as it was compiled, where the
    installation has that, since an interpreter compiles the program that it is given each time.
    """
    compiled = getattr(__spec__, "cached", None)  # CPython 3.15 has no __cached__
    program = compiled if compiled is not None and _is_current(compiled) else __file__
    return [sys.executable, "-IS", program, name]


def _is_current(compiled: str) -> bool:
    """Whether it was compiled from this file as it is; PEP 552 has the header."""
    try:
        memory = posix.open(compiled, posix.O_RDONLY)
        header = posix.read(memory, 16)
        posix.close(memory)
        source = posix.stat(__file__)
    except OSError:
        return False
    if _number(header, 4, 4) != 0:
        return True  # by its hash, as packages of distributions have it
    made_from = _number(header, 8, 4), _number(header, 12, 4)
    return made_from == (int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)


def main(arguments: list[str]) -> int:
    """Run the probe; returns the exit status.

    :returns: 0 when every launcher called *NAME*, or the process of that pid, is ready; 1 when one
        is not, or nothing is called so; 2 for a wrong command line.
    """
    if arguments[:1] == ["--print"] and len(arguments) == 2:
        from shlex import join

        print(join(command(arguments[1])))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        return _say("give one name or pid: osloxide status --ready nova-api", 2)
    boards = _boards(arguments[0])
    if not boards:
        return _say(f"no launcher that may be read is called {arguments[0]}", 1)
    late = [pid for pid, rows in sorted(boards.items()) if not _is_ready(pid, rows)]
    if late:
        return _say(f"not ready: {', '.join(map(str, late))}", 1)
    return 0


def _say(text: str, status: int) -> int:
    print(f"osloxide: {text}", file=sys.stderr)
    return status


def _is_ready(pid: int, rows: list[tuple[int, str]]) -> bool:
    slots = {slot for slot, _ in rows}
    ready = {slot for slot, state in rows if state in _SERVES}
    return bool(slots) and slots == ready and _lives(pid)


def _lives(pid: int) -> bool:
    try:
        posix.stat(f"/proc/{pid}")
    except OSError:
        return False
    return True


def _boards(wanted: str) -> dict[int, list[tuple[int, str]]]:
    """Pid of each launcher of that name, and slot and state of its workers."""
    if wanted.isdigit():
        return _boards_of([wanted], None)
    name = wanted.encode("utf-8", "surrogateescape")[:128]
    if indexed := _indexed(name):
        return indexed
    pids = [entry for entry in posix.listdir("/proc") if entry.isdigit()]
    # Other programs may have ten thousands of descriptors, and each costs a system call.
    interpreters = [pid for pid in pids if _is_python(pid)]
    found = _boards_of(interpreters, name)
    return found or _boards_of([pid for pid in pids if pid not in interpreters], name)


def _indexed(name: bytes) -> dict[int, list[tuple[int, str]]]:
    """Those that are entered in an index (osloxide.launch.launcher_index) and are what it says."""
    boards = []
    try:
        namespace = posix.readlink("/proc/self/ns/pid").strip("pid:[]")
        end = b"-" + namespace.encode()
        directories = [
            _INDEXES + b"/" + entry
            for entry in posix.listdir(_INDEXES)
            if entry.startswith(b"osloxide-") and entry.endswith(end)
        ]
    except OSError:
        return {}
    wanted = name.replace(b"/", b"%").replace(b"\0", b"%")
    for directory in directories:
        try:
            entries = posix.listdir(directory) if _is_trusted(directory) else []
        except OSError:
            continue  # its last launcher has left
        for entry in entries:
            pid, _, rest = entry.partition(b".")
            descriptor, _, called = rest.partition(b".")
            if called != wanted or not pid.isdigit() or not descriptor.isdigit():
                continue
            path = f"/proc/{int(pid)}/fd/{int(descriptor)}"
            board = _read(path, name) if _is_memory(path) else None
            if board is not None and board[0] == int(pid):
                boards.append(board)
    # Of several that a process has made, the last one.
    return {maker: rows for maker, _, rows in sorted(boards, key=lambda board: board[1])}


def _is_trusted(directory: bytes) -> bool:
    """Whether only root or this user can have put entries there."""
    status = posix.lstat(directory)
    is_directory = status.st_mode & 0o170000 == 0o040000
    return is_directory and not status.st_mode & 0o022 and status.st_uid in (0, posix.geteuid())


def _is_memory(path: str) -> bool:
    try:
        return posix.readlink(path).startswith(_MEMFD)
    except OSError:
        return False  # it has ended, or has opened something else there


def _boards_of(pids: list[str], name: bytes | None) -> dict[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = {}
    for entry in pids:
        read = [board for path in _memories(entry) if (board := _read(path, name)) is not None]
        if read:
            # Of several, the one that the process made itself and made last, as status takes it.
            pid, _, rows = max(read, key=lambda board: (board[0] == int(entry), board[1]))
            found.setdefault(pid, rows)
    return found


def _is_python(pid: str) -> bool:
    """Whether its program is called so; False as well for what other users run."""
    try:
        return "py" in posix.readlink(f"/proc/{pid}/exe").rpartition("/")[2]
    except OSError:
        return False


def _memories(pid: str) -> list[str]:
    directory = f"/proc/{pid}/fd"
    try:
        # With the directory open, the kernel looks the process up once, not for each descriptor.
        opened = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY)
    except OSError:
        return []  # it ended, or belongs to another user
    found = []
    try:
        for name in posix.listdir(opened):
            try:
                if posix.readlink(name, dir_fd=opened).startswith(_MEMFD):
                    found.append(f"{directory}/{name}")
            except OSError:
                continue
    except OSError:
        return []  # it ended just now
    finally:
        posix.close(opened)
    return found


def _read(path: str, name: bytes | None) -> tuple[int, int, list[tuple[int, str]]] | None:
    """Maker, time of making, and rows of a scoreboard; None when it has another name."""
    try:
        # The descriptor may be another one by now, even a pipe without a writer.
        memory = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK)
    except OSError:
        return None
    try:
        header = posix.pread(memory, 256, 0)
        if int.from_bytes(header[:8], sys.byteorder).to_bytes(8, "big") != _MAGIC:
            return None
        if name is not None and header[_NAME].rstrip(b"\0") != name:
            return None
        row_bytes, pid, started_at, used = (
            _number(header, 16, 4), _number(header, 20, 4), _number(header, 24, 8),
            _number(header, 32, 4),
        )  # fmt: skip
        rows = []
        for index in range(used):
            row = posix.pread(memory, 8, _HEADER_BYTES + index * row_bytes)
            if len(row) < 8:
                return None  # it is shorter than it says
            state = _STATES[_number(row, 0, 4)]
            if state not in _NOT_SHOWN:
                rows.append((_number(row, 4, 4), state))
        return pid, started_at, rows
    except (OSError, IndexError):
        return None  # it ended just now, or is of another version
    finally:
        posix.close(memory)


def _number(data: bytes, place: int, size: int) -> int:
    return int.from_bytes(data[place : place + size], sys.byteorder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
