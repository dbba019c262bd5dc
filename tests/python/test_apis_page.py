"""docs/apis.md has the table that the data of the service tests make."""

from __future__ import annotations

import ast
import re

from services import apis, apis_page


def test_the_table_says_what_the_last_run_recorded() -> None:
    _, _, rest = apis_page.PAGE.read_text().partition(apis_page.BEGIN)

    assert rest.partition(apis_page.END)[0] == apis_page.table(), (
        "docs/apis.md is not what tests/services/apis_page.py writes: run it"
    )


def test_each_column_names_a_test_that_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", apis_page.PAGE.read_text()))
    source = apis.TABLE.with_name("test_real_apis.py").read_text()
    there = {it.name for it in ast.parse(source).body if isinstance(it, ast.FunctionDef)}

    assert len(named) == 4
    assert named <= there
