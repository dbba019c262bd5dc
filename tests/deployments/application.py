import json
import os
import sys

try:
    import uwsgi
except ImportError:  # osloxide serve, which does not offer it unless it is asked to
    import types

    uwsgi = types.SimpleNamespace(numproc=0, worker_id=int, opt={})

ARGUMENTS = list(sys.argv)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith(("OS_", "REQ"))}


def left() -> None:
    with open(f"/sandbox/left/{os.getpid()}", "w") as file:
        file.write("atexit")


uwsgi.atexit = left


def application(environ, start_response):
    body = environ["wsgi.input"].read()
    status = "404 Not Found" if environ["PATH_INFO"] == "/absent" else "200 OK"
    start_response(status, [("Content-Type", "application/json")])
    facts = {
        "argv": ARGUMENTS,
        "environment": ENVIRONMENT,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "directory": os.getcwd(),
        "numproc": uwsgi.numproc,
        "worker": uwsgi.worker_id(),
        "start_time": uwsgi.opt.get("start-time", b"").decode(),
        "scheme": environ["wsgi.url_scheme"],
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "body": body.decode(),
    }
    return [json.dumps(facts).encode()]
