"""How command lines end: exit codes, sentences, names that the terminal cannot print."""

import errno
import io
import os
import sys

import jax
import pytest
from absl.testing import flagsaver

from benchmarks import comparison, ledger, study
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.errors import NonFiniteError, UserError
from gaternet_jax.main import parse_flags
from gaternet_jax.tools import analyze, compact, convert, export, models, predict, prepare


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (analyze, ["--workdir=nothing"]),
        (compact, ["--workdir=nothing", "--out=nothing2"]),
        (convert, ["--checkpoint=nothing.safetensors", "--out=nothing2"]),
        (export, ["--workdir=nothing", "--out=nothing.zip"]),
        (models, ["--models=nothing"]),
        (predict, ["--workdir=nothing", "cat.png"]),
        (prepare, ["folder", "--root=nothing"]),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "main") else "",
)
def test_mistakes_given_to_a_tool_end_with_2_and_a_sentence(tool, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ending:
        tool.main(arguments)
    assert ending.value.code == 2
    assert capsys.readouterr().err == f"{ending.value}\n"
    assert str(ending.value).startswith("error: ") and "nothing" in str(ending.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "reason", [RuntimeError("Unable to initialize backend 'cuda': no GPU\nmore"), AssertionError()]
)
def test_no_device_of_the_kind_that_was_asked_for(reason, capsys, monkeypatch):
    def devices():
        raise reason

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(SystemExit) as ending, command_line():
        jax.devices()
    assert ending.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: JAX_PLATFORMS=cpu, but JAX finds no such device") and told.count("\n") == 1
    assert "look at the driver" in told


@pytest.mark.parametrize(
    ("number", "path", "told"),
    [(errno.EACCES, "runs/a", "error: runs/a: Permission denied; "), (errno.ENOSPC, None, "error: No space left on ")],
)
def test_a_file_that_may_not_be_used_and_a_full_disk(number, path, told, capsys):
    with pytest.raises(SystemExit) as ending, command_line():
        raise OSError(number, os.strerror(number), path)
    assert ending.value.code == 2
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), OSError(errno.EIO, "Input/output error")])
def test_other_errors_are_crashes(error):
    with pytest.raises(type(error)), command_line():
        raise error


def test_what_the_terminal_cannot_print_is_escaped(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit), command_line():
        print("B\u00fcld\udcff.png", flush=True)
        raise UserError("no \u732b here")
    assert out.buffer.getvalue() == b"B\\xfcld\\udcff.png\n"
    assert err.buffer.getvalue() == b"error: no \\u732b here\n"


@pytest.mark.parametrize(
    ("benchmark", "arguments"),
    [(ledger, []), (study, ["--only=*vgg*"]), (comparison, ["--config=none", "--models=resnet8", "--out=nothing"])],
)
def test_mistakes_given_to_a_benchmark_end_with_2(benchmark, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit, match=r"^error: ") as ending:
        benchmark.main()
    assert ending.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such file"), 2, "error: no such file\n"),
        (NonFiniteError("loss is nan"), 2, "error: loss is nan\n"),
        (FloatingPointError("invalid value"), 2, "error: invalid value\n"),
        (KeyboardInterrupt(), 130, "\nGo on.\n"),
    ],
)
def test_exit_codes(error, code, message, capsys):
    with pytest.raises(SystemExit) as ending, command_line(interrupted="Go on."):
        raise error
    assert ending.value.code == code
    assert capsys.readouterr().err == message


def test_mistakes_are_value_errors():
    assert issubclass(UserError, ValueError)


pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "^say what to train: --config=NAME, one of cifar10, .*, or --config=DIR/NAME.py$"),
        (["--mode=evaluate"], "^say what to evaluate: --workdir=DIR"),
        (["--config=digits:resnet20-x"], "^unknown part 'x' of the config variant 'resnet20-x'. A variant is MODEL-"),
        (["--config=mnist"], "^--config=mnist: no run card is called 'mnist'; there are cifar10, cifar100, digits"),
        (["--config", "mnist"], "^--config=mnist: no run card is called 'mnist'"),
        (["--config=README.md"], "the file that --config names cannot be read"),
        (
            ["--config=configs/nothing.py"],
            r"No such file or directory: 'configs/nothing.py'\); run cards that need no file: cifar10, ",
        ),
        ([DIGITS, "--config.train.epoch=3"], 'Did you mean "epochs" instead of "epoch"?'),
        ([DIGITS, "--config.train.epochs=many"], "could not convert string to float: 'many'"),
        ([DIGITS, "--config.train.batch_size=8.5"], r"invalid literal for int\(\) with base 10: '8\.5'"),
        ([DIGITS, "--config.model.width.x=3"], r"Attempting to lookup: model\.width\.x"),
        (
            [DIGITS, "--config.train.batchsize=3"],
            "the config cannot be used: 'batchsize'. Did you mean",
        ),
        ([DIGITS, "--epochs=3"], "Unknown command line flag 'epochs'; --help lists the flags"),
        (
            ["--mode=evaluate", "--workdir=run", "--config.data.eval_split=train"],
            r"^--config\.data\.eval_split is a field of a run card: give --config=NAME, too; to evaluate, that of",
        ),
        ([DIGITS, "--mode=test"], r"flag --mode=test: value should be one of <train\|evaluate>"),
        ([DIGITS, "--debug_nans", "true"], "'true' is no flag; flags are --FLAG=VALUE"),
        (["configs/digits.py"], "'configs/digits.py' is no flag"),
    ],
)
@flagsaver.flagsaver
def test_mistakes_in_flags(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", *arguments])  # where ml_collections looks for fields
    with pytest.raises(UserError, match=message):
        parse_flags(sys.argv)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            "import nothing_here",
            r"^the run card fails: ModuleNotFoundError: No module .*card\.py, line 1\)",
        ),
        ("def get_config():\n    raise ValueError('no data')", "^ValueError: no data"),
        (
            "def get_config():\n    return undefined",
            r"NameError: name 'undefined' .*card\.py, line 2\)",
        ),
        ("def get_config():\n    raise NotImplementedError", r"the run card fails: NotImplementedError:? \("),
        ("def get_configs(): pass", "has no attribute 'get_config'"),
        ("def get_config():\n    return 3", "'int' object has no attribute 'lock'"),
        ("def get_config(", "cannot be read .*was never closed"),
    ],
)
@flagsaver.flagsaver
def test_run_cards_that_fail(card, message, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # where ml_collections keeps a card
    (tmp_path / "card.py").write_text(card)
    with pytest.raises(UserError, match=message) as error:
        parse_flags(["main", f"--config={tmp_path / 'card.py'}"])
    assert "\n" not in str(error.value)
