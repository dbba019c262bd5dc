"""The ``osloxide`` command, as processes see it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from _children import environment, run_command, run_python

from osloxide.activation import environment as hook_environment
from osloxide.cli import main_source, table, target
from osloxide.cli.errors import CommandError

OSLOXIDE = [sys.executable, "-m", "osloxide"]


@pytest.fixture
def script(tmp_path: Path):
    """Makes executable files: ``script(text, shebang=..., mode=...)``."""

    def make(
        text: str = "", *, shebang: str | None = f"#!{sys.executable}", mode: int = 0o755
    ) -> Path:
        path = tmp_path / f"service-{len(list(tmp_path.iterdir()))}"
        path.write_text(text if shebang is None else f"{shebang}\n{text}")
        path.chmod(mode)
        return path

    return make


def osloxide(*arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return run_command([*OSLOXIDE, *map(str, arguments)], environ=environment(**changes))


# ---- run


def test_run_passes_arguments_on_untouched(script) -> None:
    program = script("import sys; print(sys.argv)")

    result = osloxide("run", program, "--config-file", "x", "-h", "--", "--json", "run")

    words = [str(program), "--config-file", "x", "-h", "--", "--json", "run"]
    assert result.stdout == f"{words}\n"


def test_run_keeps_the_pid_and_the_outermost_frame(script) -> None:
    program = script("""
import inspect, os
print(os.getpid(), inspect.stack()[-1].filename)
""")
    child = subprocess.Popen(
        [*OSLOXIDE, "run", str(program)], env=environment(), stdout=subprocess.PIPE, text=True
    )

    stdout, _ = child.communicate(timeout=60)

    assert stdout == f"{child.pid} {program}\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_run_needs_no_standard_streams(script, tmp_path: Path, closed: str) -> None:
    program = script("import sys; open('ran', 'w').close(); sys.exit(7)")

    result = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *OSLOXIDE, "run", str(program)],
        cwd=tmp_path,
        env=environment(),
        timeout=60,
        check=False,
    )

    assert result.returncode == 7
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("words", [["metrics", "--once"], ["status"], ["top", "--once"]])
def test_a_command_that_prints_needs_no_standard_streams(launcher: int, words: list[str]) -> None:
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *OSLOXIDE, *words, str(launcher)],
        env=environment(),
        timeout=60,
        check=False,
    )

    assert result.returncode == 0


def test_run_activates_the_hook(script) -> None:
    program = script("""
import os, osloxide.activation.import_hook
print(osloxide.activation.import_hook.is_installed(), os.environ["OSLOXIDE"])
for name in sorted(os.environ):
    if name.endswith("DISABLE_EVENTLET_PATCHING"):
        print(name, os.environ[name])
""")

    result = osloxide("run", program, OS_MANILA_DISABLE_EVENTLET_PATCHING="yes")

    assert result.stdout.splitlines() == [
        "True 1",
        "OS_CINDER_DISABLE_EVENTLET_PATCHING 1",
        "OS_MANILA_DISABLE_EVENTLET_PATCHING yes",
        "OS_NOVA_DISABLE_EVENTLET_PATCHING 1",
        "OS_WATCHER_DISABLE_EVENTLET_PATCHING 1",
    ]
    assert result.stderr == ""


def test_run_warns_about_a_switch_that_keeps_the_real_eventlet(script) -> None:
    result = osloxide("run", "--eventlet", "real", script(), OS_NOVA_DISABLE_EVENTLET_PATCHING="no")
    assert "OS_NOVA_DISABLE_EVENTLET_PATCHING=no makes its service monkey-patch" in result.stderr


def test_a_switch_that_keeps_eventlet_is_no_fault_where_osloxide_serves_it(script) -> None:
    program = script("import eventlet; eventlet.monkey_patch(); print(eventlet.__name__)")
    result = osloxide("run", program, OS_NOVA_DISABLE_EVENTLET_PATCHING="no")
    assert result.stdout == "osloxide.green\n"
    assert result.stderr == ""


def test_gevent_is_found_and_refused_as_libraries_that_look_for_it_expect(
    script, tmp_path: Path
) -> None:
    (tmp_path / "site/gevent").mkdir(parents=True)
    (tmp_path / "site/gevent/__init__.py").write_text("raise ValueError('size changed')\n")
    program = script("""
import importlib.util
print(importlib.util.find_spec("gevent") is not None)
try:
    import gevent.monkey
except ImportError as error:
    print(error)
""")

    result = osloxide("run", program, PYTHONPATH=str(tmp_path / "site"))

    assert result.stderr == ""
    assert result.stdout.startswith("True\ngevent is not served: ")
    assert "OSLOXIDE_EVENTLET=real" in result.stdout
    real = osloxide("run", "--eventlet", "real", program, PYTHONPATH=str(tmp_path / "site"))
    assert "size changed" in real.stderr  # its own body ran
    if importlib.util.find_spec("gevent") is None:
        absent = osloxide("run", program).stdout
        assert absent == "False\nNo module named 'gevent'\n"


def test_run_refuses_a_switch_that_it_does_not_know(script) -> None:
    result = osloxide("run", script("print('ran')"), OSLOXIDE_EVENTLET="green")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "OSLOXIDE_EVENTLET is 'green'" in result.stderr
    assert "'native'" in result.stderr
    assert "'real'" in result.stderr


def test_run_turns_native_rpc_on_only_where_it_is_asked_to(script) -> None:
    program = script('import os; print(os.environ.get("OSLOXIDE_NATIVE_RPC"))')
    assert osloxide("run", program).stdout == "None\n"
    assert osloxide("run", "--native-rpc", program).stdout == "1\n"
    refused = osloxide("run", program, OSLOXIDE_NATIVE_RPC="yes")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "OSLOXIDE_NATIVE_RPC is 'yes'; set it to 1" in refused.stderr


def test_check_says_what_is_used_of_eventlet_and_not_served(script, tmp_path: Path) -> None:
    (tmp_path / "a_service.py").write_text(
        "import eventlet\nfrom eventlet import event, greenthread as g\n"
        "eventlet.monkey_patch()\n"
        "def main():\n    eventlet.twist(event.Event())\n    g.spawn(main)\n"
    )
    program = script("from a_service import main\nmain()\n")
    result = osloxide("check", program, PYTHONPATH=str(tmp_path))
    assert "served by osloxide" in result.stdout
    assert "monkey_patch() is a no-op" in result.stdout
    assert "problem: eventlet.twist is used by a_service" in result.stdout
    assert "greenthread" not in result.stdout
    assert result.returncode == 1


def test_run_finds_commands_on_path(script) -> None:
    program = script("print('found')")
    path = f"{program.parent}:{os.environ['PATH']}"
    assert osloxide("run", program.name, PATH=path).stdout == "found\n"


def test_run_returns_the_exit_status_of_the_command(script) -> None:
    assert osloxide("run", script("raise SystemExit(7)")).returncode == 7


def test_run_gives_default_signal_dispositions_to_the_command() -> None:
    # Python ignores SIGPIPE; a shell that inherits that cannot change it back.
    result = osloxide("run", "/bin/sh", "-c", "grep SigIgn /proc/$$/status")
    ignored = int(result.stdout.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1))
    assert not ignored & (1 << (signal.SIGXFSZ - 1))


def test_run_accepts_a_python_as_the_command() -> None:
    code = "import osloxide; print(osloxide.is_installed())"
    assert osloxide("run", sys.executable, "-c", code).stdout == "True\n"


def test_run_of_an_unknown_command_is_127() -> None:
    result = osloxide("run", "no-such-service")
    assert result.returncode == 127
    assert result.stderr == (
        "osloxide: no-such-service: command not found on PATH; check the name, or give its full "
        "path\n"
    )


def test_a_command_that_only_osloxides_own_environment_has_is_named_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nova-api"
    program.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    with pytest.raises(CommandError) as error:
        target.resolve("nova-api", [], {"PATH": "/nowhere"})

    assert str(error.value) == f"nova-api: command not found on PATH; give {program}"


@pytest.mark.parametrize("kind", ["mode", "directory", "no shebang", "empty shebang"])
def test_run_of_something_not_executable_is_126(script, tmp_path: Path, kind: str) -> None:
    program = {
        "mode": lambda: script(mode=0o644),
        "directory": lambda: tmp_path,
        "no shebang": lambda: script("echo", shebang=None),
        "empty shebang": lambda: script("echo", shebang="#! "),
    }[kind]()

    result = osloxide("run", program)

    assert result.returncode == 126, result
    assert result.stderr.startswith(f"osloxide: {program} ")
    assert len(result.stderr.splitlines()) == 1


def test_run_names_a_missing_interpreter(script) -> None:
    result = osloxide("run", script(shebang="#!/nowhere/python3"))
    assert result.returncode == 126
    assert "names the interpreter /nowhere/python3: No such file or directory" in result.stderr


@pytest.mark.parametrize("flag", ["-I", "-E", "-S", "-sE", "-IB"])
def test_run_refuses_flags_that_hide_the_hook(script, flag: str) -> None:
    program = script("print('ran')", shebang=f"#!{sys.executable} {flag}")

    result = osloxide("run", program)

    assert result.returncode == 1
    assert result.stdout == ""
    assert f"{sys.executable} {flag}" in result.stderr
    assert f"'osloxide run {sys.executable} {program}'" in result.stderr


def test_run_refuses_such_flags_given_to_python_itself() -> None:
    result = osloxide("run", sys.executable, "-X", "dev", "-I", "-c", "print('ran')")
    assert (result.returncode, result.stdout) == (1, "")
    assert "leave -I out" in result.stderr


def test_run_refuses_an_interpreter_without_osloxide(script, tmp_path: Path) -> None:
    # A wrapper that hides site-packages stands for another environment's interpreter.
    other = tmp_path / "python3"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    other.chmod(0o755)

    result = osloxide("run", script("print('ran')", shebang=f"#!{other}"))

    assert (result.returncode, result.stdout) == (1, "")
    assert f"runs on {other}, which cannot import osloxide" in result.stderr


@pytest.mark.parametrize(("flag", "status"), [("", 0), ("-s", 1)])
def test_run_sees_what_a_flag_hides(script, tmp_path: Path, flag: str, status: int) -> None:
    # osloxide installed for the user, beside an interpreter that has it not.
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix, "bin", name)
    if not base.exists():
        pytest.skip(f"no {base}")
    if flag:
        plain = run_command([base, flag, "-c", "import osloxide"], environ=environment())
        if plain.returncode == 0:
            pytest.skip(f"{base} has osloxide itself, as a package of the distribution")
    packages = tmp_path / "user/lib" / name / "site-packages"
    packages.mkdir(parents=True)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    ours.append(str(Path(hook_environment.__file__).parents[2]))
    (packages / "user.pth").write_text("\n".join(ours) + "\n")

    result = run_command(
        [base, "-m", "osloxide", "run", script("print('ran')", shebang=f"#!{base} {flag}")],
        environ=environment(PYTHONUSERBASE=str(tmp_path / "user")),
    )

    assert (result.returncode, result.stdout) == (status, "" if status else "ran\n")
    assert ("cannot import osloxide" in result.stderr) is bool(status)


def test_run_refuses_its_own_interpreter_where_that_found_osloxide_in_this_directory_alone(
    script, tmp_path: Path
) -> None:
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    if run_command([base, "-c", "import osloxide"], environ=environment()).returncode == 0:
        pytest.skip(f"{base} has osloxide itself, as a package of the distribution")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/osloxide").symlink_to(Path(hook_environment.__file__).parents[1])
    info = tmp_path / "site/oslo_service-4.8.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oslo.service\nVersion: 4.8.0\n")

    result = run_command(
        [base, "-m", "osloxide", "run", base, script("print('ran')")],
        environ=environment(PYTHONPATH=str(info.parent)),
        cwd=tmp_path / "here",
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert f"{base} did not run osloxide's sitecustomize; install osloxide" in result.stderr


def test_run_of_an_unsupported_oslo_service_is_refused(script, tmp_path: Path) -> None:
    info = tmp_path / "site/oslo_service-3.5.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oslo.service\nVersion: 3.5.0\n")

    result = osloxide("run", script("print('ran')"), PYTHONPATH=str(info.parent))

    assert (result.returncode, result.stdout) == (1, "")
    assert "cannot replace oslo.service 3.5.0" in result.stderr
    assert "install oslo.service >= 4.2, < 5" in result.stderr


def test_run_goes_on_when_the_interpreter_cannot_be_told() -> None:
    result = osloxide("run", "/bin/echo", "hello")
    assert result.stdout == "hello\n"
    assert "warning: cannot tell which Python /bin/echo runs" in result.stderr


@pytest.fixture(params=["for another interpreter", "in an archive"])
def without_native_module(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """Where a package lies whose native module is not found, and what must be said of it."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # a copy is not to be measured
    folder = tmp_path / "site/osloxide"
    source = Path(hook_environment.__file__).parents[1]
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    other = folder / "_native.cpython-310-x86_64-linux-gnu.so"
    other.touch()
    if request.param == "in an archive":
        archive = Path(shutil.make_archive(str(tmp_path / "service"), "zip", folder.parent))
        return archive, f"cannot load osloxide._native out of the archive that {archive}/osloxide"
    return folder.parent, f"in {folder}, where there is {other.name}; install osloxide with"


@pytest.mark.parametrize("words", [["serve", "APP"], ["run", "APP"], ["status"]])
def test_a_native_module_that_is_not_found_is_told_in_one_line(
    script, without_native_module: tuple[Path, str], words: list[str]
) -> None:
    place, said = without_native_module
    app = script("print('ran')")

    result = osloxide(*(app if word == "APP" else word for word in words), PYTHONPATH=str(place))

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("osloxide: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_program_that_has_osloxide_without_its_native_module_is_told_what_helps(
    without_native_module: tuple[Path, str],
) -> None:
    place, said = without_native_module
    result = run_python("from osloxide import service", PYTHONPATH=str(place))
    assert said in result.stderr.splitlines()[-1]


# ---- which interpreter


@pytest.mark.parametrize(
    ("head", "interpreter", "flags"),
    [
        ("#!/usr/bin/python3", "/usr/bin/python3", ()),
        ("#! /usr/bin/python3.12 -sP ", "/usr/bin/python3.12", ("-sP",)),
        ("#!/opt/venv/bin/python3.14t", "/opt/venv/bin/python3.14t", ()),
        ("#!/bin/sh\n'''exec' \"/a b/python\" \"$0\" \"$@\"\n' '''", "/a b/python", ()),
        ("#!/bin/sh\n'''exec' /x/python3 -E \"$0\" \"$@\"\n' '''", "/x/python3", ("-E",)),
        ("#!/bin/bash", None, ()),
    ],
)
def test_shebang_lines_are_read_as_the_kernel_does(
    script, head: str, interpreter: str | None, flags: tuple[str, ...]
) -> None:
    found = target.resolve(str(script(shebang=head)), [], {})
    assert (found.interpreter, found.flags) == (interpreter, flags)


@pytest.mark.parametrize(
    ("command", "links"),
    [
        ("""'''exec' "$(dirname -- "$(realpath -- "$0")")"/'python' "$0" "$@"\n' '''""", True),
        ("""'''exec' "$(dirname "$(readlink -f "$0")")/python" "$0" "$@"\n' '''""", True),
        (""""exec" "$(dirname -- "$0")/python" "$0" "$@\"""", False),
        (""""exec" "$(dirname "$0")/python" -I "$0" "$@\"""", False),
    ],
)
def test_scripts_of_an_environment_that_may_be_moved_run_on_the_python_beside_them(
    script, tmp_path: Path, command: str, links: bool
) -> None:
    program = script(shebang=f"#!/bin/sh\n{command}")
    link = tmp_path / 'a "link" of it' / "service"
    link.parent.mkdir()
    link.symlink_to(program)

    found = target.resolve(str(link), [], {})

    assert found.interpreter == str((program if links else link).with_name("python"))
    assert found.flags == (("-I",) if " -I " in command else ())


@pytest.mark.parametrize("line", ["env python3", "env -S python3 -I", "env -S A=1 python3 -I"])
def test_env_is_looked_through(script, tmp_path: Path, line: str) -> None:
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)

    found = target.resolve(
        str(script(shebang=f"#!/usr/bin/{line}")), [], {"PATH": str(python.parent)}
    )

    assert found.interpreter == str(python)
    assert found.flags == (("-I",) if "-I" in line else ())


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["-I", "x.py"], "-I"),
        (["-X", "-I", "x.py"], None),
        (["-Wignore", "-m", "x", "-I"], None),
        (["x.py", "-I"], None),
        (["-bsE", "-c", "1"], "-bsE"),
        (["-c", "1", "-I"], None),
        (["-Ic", "1"], "-I"),
        (["-bIm", "x"], "-bI"),
        (["-cI"], None),
    ],
)
def test_only_options_of_the_interpreter_count(arguments: list[str], flag: str | None) -> None:
    found = target.resolve(sys.executable, arguments, {})
    assert target.hiding_flag(found.flags) == flag


# ---- check


def test_check_reports_what_would_be_replaced(script) -> None:
    program = script("from json.tool import main\nif __name__ == '__main__':\n    main()\n")

    result = osloxide("check", "--json", program)

    report = json.loads(result.stdout)
    assert result.returncode == 0, report["problems"]
    assert report["interpreter"]["path"] == sys.executable
    assert report["module"]["name"] == "json.tool"
    assert report["module"]["imported"] is True
    assert {row["name"]: row["served_by"] for row in report["aliases"]} == {
        "oslo_service.backend._eventlet": "osloxide.backends.eventlet",
        "oslo_service.backend._threading": "osloxide.backends.threading",
        "oslo_service.wsgi": "osloxide.wsgi",
    }
    assert report["monkey_patched_by"] is None
    assert report["environment"]["PYTHONPATH"] == hook_environment.SITECUSTOMIZE_DIR
    shown = osloxide("check", program, "--config-file", "a b").stdout
    assert f"ready: 'osloxide run {program} --config-file 'a b'' will use osloxide" in shown


def test_check_shows_the_backend_that_the_service_selects(script, tmp_path: Path) -> None:
    (tmp_path / "a_service.py").write_text(
        "from oslo_service import backend\n"
        "backend.init_backend(backend.BackendType.EVENTLET)\n"
        "def main(): raise AssertionError('started')\n"
    )
    program = script("import sys\nfrom a_service import main\nsys.exit(main())\n")

    result = osloxide("check", "--json", program, PYTHONPATH=str(tmp_path))

    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout)["backend"] == "eventlet"


def test_check_finds_a_service_that_monkey_patches_with_the_real_eventlet(
    script, tmp_path: Path
) -> None:
    (tmp_path / "a_service.py").write_text(
        "import sys, types\n"
        "sys.modules['eventlet.patcher'] = types.SimpleNamespace(already_patched={'os': True})\n"
        "def main(): pass\n"
    )
    program = script("from a_service import main\nmain()\n")

    result = osloxide("check", program, PYTHONPATH=str(tmp_path))

    assert result.returncode == 1
    assert "problem: a_service monkey-patches with eventlet" in result.stdout


def test_check_reports_an_import_that_fails(script) -> None:
    result = osloxide("check", script("from no_such_package.cmd import main\nmain()\n"))
    assert result.returncode == 1
    assert "problem: importing no_such_package.cmd failed: ModuleNotFoundError" in result.stdout


def test_check_reports_hiding_flags(script) -> None:
    result = osloxide("check", "--json", script(shebang=f"#!{sys.executable} -I"))
    assert result.returncode == 1
    assert "-I, which ignores PYTHONPATH" in json.loads(result.stdout)["problems"][0]


def test_check_says_which_commands_bring_a_supervisor_of_their_own(script, tmp_path: Path) -> None:
    (tmp_path / "a_service.py").write_text("import cotyledon\ndef main(): pass\n")
    cotyledons = script("from a_service import main\nmain()\n")

    result = osloxide("check", cotyledons, PYTHONPATH=str(tmp_path))

    assert result.returncode == 0
    assert "\nsupervisor     cotyledon" in result.stdout
    assert "supervisor" not in osloxide("check", script("from json.tool import main\n")).stdout


def test_check_looks_into_scripts_modules_and_text_that_python_is_given(
    script, tmp_path: Path
) -> None:
    uses = "import eventlet\nfrom oslo_service import service\nimport beside\n"
    program = script(
        f"{uses}eventlet.monkey_patch()\nif __name__ == '__main__':\n    eventlet.twist()\n"
    )
    (tmp_path / "beside.py").write_text("import eventlet\nx = lambda: eventlet.twirl()\n")
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package/__init__.py").touch()
    (tmp_path / "a_package/__main__.py").write_text("from . import core\ncore.main()\n")
    (tmp_path / "a_package/core.py").write_text("import eventlet\ny = lambda: eventlet.turn()\n")

    by_name = osloxide("check", program)
    by_python = osloxide("check", sys.executable, "-Wd", program, "--config-file", "x")
    module = osloxide("check", sys.executable, "-m", "a_package", PYTHONPATH=str(tmp_path))
    text = osloxide("check", sys.executable, "-c", "import eventlet; eventlet.turn")

    for result in (by_name, by_python):
        assert "monkey_patch() is a no-op" in result.stdout
        assert "backend type   eventlet" in result.stdout
        assert f"problem: eventlet.twist is used by {program}" in result.stdout
        assert "problem: eventlet.twirl is used by beside" in result.stdout
        assert result.returncode == 1
    assert "problem: eventlet.turn is used by a_package.core" in module.stdout
    assert "problem: eventlet.turn is used by -c" in text.stdout


def test_check_calls_nothing_ready_that_it_cannot_look_into(script, tmp_path: Path) -> None:
    shell = script("exec python service.py\n", shebang="#!/bin/sh")
    wrapper = script("import subprocess, sys\nsubprocess.call(sys.argv[1:])\n")
    archive = tmp_path / "service.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", "import eventlet\n")
    for command, said in (
        ([shell], f"cannot tell which Python {shell} runs"),
        (["sh", "-c", "exec service"], "cannot tell which Python"),
        ([wrapper], "calls subprocess.call(): what that runs is unknown"),
        ([sys.executable, archive], f"{archive} is an archive"),
        ([sys.executable], "names no script"),
        ([sys.executable, "-m", "no_such_module"], "no module no_such_module"),
    ):
        result = osloxide("check", *command)
        assert said in result.stdout
        assert "ready:" not in result.stdout
        assert result.returncode == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import a.b, c", [("a.b", None, False), ("c", None, False)]),
        ("from a import b, c", [("a", "b", False), ("a", "c", False)]),
        ("try:\n import a\nexcept ImportError:\n import b", [("a", None, True), ("b", None, True)]),
        ("if __name__ == '__main__':\n from a import b", [("a", "b", False)]),
        ("def f():\n import a", []),
        ("from __future__ import annotations", []),
        (
            "import sys\nsys.exit(load_entry_point('x==1', 'console_scripts', 'osloxide')())",
            [("sys", None, False), ("osloxide.cli", None, False)],
        ),
    ],
)
def test_imports_are_read_from_the_source(text: str, found: list[tuple[str, object, bool]]) -> None:
    imports = main_source.read("code", text).imports()
    assert [(each.module, each.name, each.optional) for each in imports] == found


def test_check_of_an_unknown_command_is_127() -> None:
    assert osloxide("check", "no-such-service").returncode == 127


# ---- status


BOARD = """
    import os, sys
    from osloxide._native import Scoreboard
    board = Scoreboard("demo")
    board.claim(0, 3)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def launcher():
    """A process with a scoreboard; yields its pid."""
    import textwrap

    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BOARD)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_status_shows_a_launcher_as_a_table(launcher: int) -> None:
    result = osloxide("status", str(launcher))

    heading, columns, row = result.stdout.splitlines()
    assert heading.startswith(f"demo {launcher}: {sys.executable} -c")
    assert columns.split() == [
        "SERVICE", "SLOT", "PID", "STATE", "UP", "CONN", "QUEUED", "IN", "FLIGHT", "OLDEST",
        "SERVED", "4XX", "5XX", "UNSENT", "THREADS", "CPU", "RESPAWNS", "RSS",
    ]  # fmt: skip
    assert row.split()[:4] == ["0", "0", str(launcher), "starting"]


def test_status_without_a_pid_finds_the_launchers(launcher: int) -> None:
    found = json.loads(osloxide("status", "--json").stdout)
    ours = [entry for entry in found if entry["pid"] == launcher]
    assert len(ours) == 1
    assert ours[0]["name"] == "demo"
    assert ours[0]["workers"][0]["generation"] == 3
    assert ours[0]["workers"][0]["rss_bytes"] > 1024**2


def test_status_of_a_process_without_a_launcher_says_so() -> None:
    result = osloxide("status", str(os.getpid()))
    assert result.returncode == 1
    assert f"process {os.getpid()} has no osloxide launcher" in result.stderr


def test_status_of_no_process_says_so() -> None:
    result = osloxide("status", "999999999")
    assert result.returncode == 1
    assert "process 999999999 does not exist" in result.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.04, "0.0s"), (9.94, "9.9s"), (10, "10s"), (59.9, "59s"), (60, "1m00s"),
        (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (86400, "1d00h"), (1e6, "11d13h"),
    ],
)  # fmt: skip
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert table.duration(seconds) == text


# ---- the command itself


def test_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert osloxide("--version").stdout == f"osloxide {version('osloxide')}\n"


def test_no_subcommand_is_a_usage_error() -> None:
    result = osloxide()
    assert result.returncode == 2
    assert "name a subcommand: run, check, status" in result.stderr


def test_run_imports_neither_oslo_service_nor_the_extension() -> None:
    result = run_python("""
        import sys
        import osloxide.cli, osloxide.cli.run
        late = {"oslo_service", "osloxide._native", "subprocess", "logging"} & set(sys.modules)
        assert not late, late
    """)
    assert result.returncode == 0, result.stderr
