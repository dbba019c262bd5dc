"""``--workers auto``: one for each processor that the process may use, as its cgroups say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from osloxide.cli import cpus


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight processors whose cgroups lie in the directory returned."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/kube/pod\n")
    return tmp_path / "cgroup"


def limit(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text + "\n")


def test_without_a_quota_it_is_the_affinity(eight: Path) -> None:
    limit(eight / "kube" / "pod", cpu__max="max 100000")

    assert cpus.count() == 8


@pytest.mark.parametrize(("quota", "count"), [("150000", 2), ("100000", 1), ("5000", 1)])
def test_a_quota_is_rounded_up(eight: Path, quota: str, count: int) -> None:
    limit(eight / "kube" / "pod", cpu__max=f"{quota} 100000")

    assert cpus.count() == count


def test_a_quota_of_a_group_above_holds(eight: Path) -> None:
    limit(eight / "kube" / "pod", cpu__max="max 100000")
    limit(eight / "kube", cpu__max="300000 100000")

    assert cpus.count() == 3


def test_a_container_sees_its_own_group_as_the_root(eight: Path) -> None:
    limit(eight, cpu__max="200000 100000")

    assert cpus.count() == 2


def test_the_first_version_of_cgroups_is_read(eight: Path) -> None:
    cpus.MEMBERSHIP.write_text("5:memory:/pod\n4:cpu,cpuacct:/pod\n")
    limit(
        eight / "cpu,cpuacct" / "pod",
        cpu__cfs_quota_us="400000",
        cpu__cfs_period_us="100000",
    )
    assert cpus.count() == 4

    limit(eight / "cpu,cpuacct" / "pod", cpu__cfs_quota_us="-1")
    assert cpus.count() == 8


def test_a_quota_never_adds_processors(eight: Path) -> None:
    limit(eight / "kube" / "pod", cpu__max="6400000 100000")

    assert cpus.count() == 8


def test_a_machine_without_proc_has_its_affinity(eight: Path) -> None:
    cpus.MEMBERSHIP.unlink()

    assert cpus.count() == 8
