"""Reading the configuration again while other threads use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from oslo_config import cfg

from osloxide.launch import configuration

if TYPE_CHECKING:
    from pathlib import Path


class BusyConfig(cfg.ConfigOpts):
    """Some thread reads the option at the worst moment: the cache is empty, the files are old."""

    def _reload_config_files(self) -> Any:
        assert self.greeting == "old"
        return super()._reload_config_files()


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "service.conf"
    path.write_text("[DEFAULT]\ngreeting = old\n")
    return path


@pytest.fixture
def conf(config_file: Path) -> BusyConfig:
    conf = BusyConfig()
    conf.register_opt(cfg.StrOpt("greeting", mutable=True))
    conf(["--config-file", str(config_file)], project="service")
    return conf


def test_value_read_during_a_mutation_does_not_stay(conf: BusyConfig, config_file: Path) -> None:
    config_file.write_text("[DEFAULT]\ngreeting = new\n")

    assert configuration.reload(conf, "mutate")

    assert conf.greeting == "new"


def test_mutation_hooks_see_the_new_value_although_threads_read_the_old_one(
    conf: BusyConfig, config_file: Path
) -> None:
    seen = []
    conf.register_mutate_hook(lambda conf, fresh: seen.append(conf.greeting))
    config_file.write_text("[DEFAULT]\ngreeting = new\n")

    configuration.reload(conf, "mutate")

    assert seen == ["new"]
