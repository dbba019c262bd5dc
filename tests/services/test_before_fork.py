"""What is made before the fork of workers, with libraries that only some services have."""

from __future__ import annotations

import subprocess

from services.apis import ALL

SORTED = """
from flask import Flask
from osloxide.activation import before_fork

site = Flask("site")
site.add_url_rule("/projects/<project>", "show", lambda project: project)
site.add_url_rule("/projects/all", "all", lambda: "all of them")
before = site.url_map._remap
before_fork.prepare()
print(before, site.url_map._remap)
print(site.test_client().get("/projects/all").text, site.test_client().get("/projects/7").text)
"""


def test_rules_of_flask_are_sorted_before_the_fork() -> None:
    keystone = ALL["keystone"].installed()
    done = subprocess.run(
        [keystone.python, "-c", SORTED], env=keystone.variables(), capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, "True False\nall of them 7\n"), done.stderr
