import importlib
import io
import os
import pwd
import sys

import pytest

from gaternet_jax.cli.command_line import command_line
from gaternet_jax.data.datasets import resolve_data_dir
from gaternet_jax.errors import UserError
from gaternet_jax.paths import expand_arguments, expand_home


@pytest.fixture
def no_home(monkeypatch):
    def nobody(*_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_home_folders_stand_in_place_of_tildes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--workdir=~/runs/x", "--config.data.root=~", "~/cat.png", "--out", "~/y"]
    expected = ["--workdir=/home/me/runs/x", "--config.data.root=/home/me", "/home/me/cat.png", "--out", "/home/me/y"]
    others = ["--sigma=a~/b", "~nobody-at-all.png"]
    assert expand_arguments([*given, *others]) == [*expected, *others]
    root = pwd.getpwuid(0)
    assert expand_arguments([f"--root=~{root.pw_name}/x"]) == [f"--root={root.pw_dir}/x"]


def test_no_home_folder_ends_in_a_sentence(no_home, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"no home folder is known, which '~/runs' lies in"):
        expand_home("~/runs")
    with pytest.raises(UserError, match="no home folder is known for the datasets; say where they are with --data_dir"):
        resolve_data_dir("")
    with pytest.raises(UserError, match="no home folder is known"):
        expand_arguments(["--workdir=~/runs"])
    assert expand_arguments(["--workdir=runs"]) == ["--workdir=runs"]


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    for encoding, text, shown in (("ascii", "猫", rb"\u732b"), ("utf-8", os.fsdecode(b"caf\xe9"), rb"caf\udce9")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        with command_line():
            pass
        print(text, end="", flush=True)
        assert stream.buffer.getvalue() == shown


@pytest.mark.parametrize("name", ["analyze", "compact", "convert", "export", "models", "predict", "prepare", "main"])
def test_every_command_knows_home_folders(name, monkeypatch):
    module = importlib.import_module("gaternet_jax.main" if name == "main" else f"gaternet_jax.tools.{name}")
    command = module.parse_flags if name == "main" else module.main
    monkeypatch.setattr(module, "expand_arguments", lambda argv: sys.exit(f"began with {argv}"))
    with pytest.raises(SystemExit, match=r"began with \['--workdir=~'\]"):
        command(["--workdir=~"])
