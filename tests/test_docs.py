"""What the documentation shows is what happens: examples of docstrings, the guide, the API page."""

import argparse
import ast
import doctest
import importlib
import re
import shlex
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import gaternet_jax as gx
from docs import make_api
from gaternet_jax.config import FIELDS
from gaternet_jax.tools.export import export
from tests.helpers import save_random_model

ROOT = Path(__file__).parent.parent
FOLDERS = ("gaternet_jax", "configs", "benchmarks", "docs", "examples", "tests")
NAMES = {"gx": gx, "jax": jax, "jnp": jnp, "nnx": nnx, "np": np}  # as docs/api.md says


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs/digits, a model of random weights."""
    folder = tmp_path_factory.mktemp("docs")
    save_random_model(folder / "runs" / "digits")
    return folder


@pytest.mark.parametrize("module", make_api.modules())
def test_examples_of_docstrings(module, runs, monkeypatch):
    monkeypatch.chdir(runs)
    found = importlib.import_module(module)
    result = doctest.testmod(found, extraglobs=NAMES, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"python -m doctest says why: {module}"


def test_every_public_function_has_an_example():
    without = {name for name, thing in make_api.entries() if callable(thing) and ">>>" not in make_api.docstring(thing)}
    of_makers = {"gx.GaterNet", "gx.Outputs", "gx.Run", "gx.UserError"}  # shown by what makes them
    of_makers |= {f"gaternet_jax.gating.{name}" for name in ("MacCount", "Prepared", "SkipClosed")}
    assert without == of_makers | {"gaternet_jax.training.loop.train"}  # in the guide


def test_docstrings_begin_with_a_verb():
    for path in sorted((ROOT / "gaternet_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                first = text.partition("\n")[0]
                assert re.match(r"[A-Z][A-Za-z]*s\b", first), f"{path.name}: {node.name} begins with no verb: {first}"


def test_the_api_page_is_up_to_date():
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page(), "run python -m docs.make_api"


def python_blocks(path):
    """The Python of a page, each block with the line at which it begins."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 2, match[1]


def test_the_readme_runs(runs, monkeypatch, capsys):
    """With a run, pictures and a network in the place of the reader's."""
    monkeypatch.chdir(runs)
    save_random_model(runs / "runs" / "cifar10-resnet56")
    for name in ("cat.png", "dog.jpg"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(name)
    x, gates, params = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 64)), jnp.ones((3, 48))
    names = {"nnx": nnx, "x": x, "images": x, "gates": gates, "params": params, "bn": lambda maps: maps}
    names |= {
        "conv": lambda x: x @ params,
        "network": lambda params, x, gates: gx.gate(x @ params, gates[:, :48], "block1"),
    }
    for line, block in python_blocks(ROOT / "README.md"):
        exec(compile("\n" * (line - 1) + block, "README.md", "exec"), names | {"__name__": "readme"})
    assert "gate block1: skips outputs" in capsys.readouterr().out


class Hidden(nnx.Module):
    """Two layers, with gates between them."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, images, gates):
        return self.two(gx.gate(self.one(images.mean((1, 2))), gates, "hidden"))


def run_page(name, **names):
    """Runs the Python of a page of docs/, in which these names are known; gives all names at the end."""
    for line, block in python_blocks(ROOT / "docs" / name):
        exec(compile("\n" * (line - 1) + block, name, "exec"), names)
    return names


def test_the_page_on_gating_runs():
    network, gates = Hidden(nnx.Rngs(0)), jnp.array([[1.0, 0.0, 1.0, 0.0]])
    images = jnp.ones((1, 8, 8, 3))
    names = run_page("gating.md", network=network, images=images, gates=gates, gx=gx, jax=jax, nnx=nnx)
    np.testing.assert_allclose(names["logits"], network(images, gates), rtol=1e-5)


def test_the_pages_on_inference_and_export_run(runs, monkeypatch):
    monkeypatch.chdir(runs)
    save_random_model(runs / "runs" / "cifar10")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save("cat.png")
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    found = run_page("inference.md", images=images)
    assert found["outputs"].logits.shape == (2, 10)
    export(Path("runs/cifar10"), Path("cifar10.zip"), "stablehlo")
    assert run_page("export.md", images=np.zeros((2, 8, 8, 1), np.uint8))["outputs"]["labels"].shape == (2,)


def test_the_guide_runs_in_a_thread(tmp_path, monkeypatch, capsys, use_devices):
    """In a thread that is not the main one, as some notebooks have it, where Python refuses handlers of signals."""
    monkeypatch.chdir(tmp_path)
    use_devices(1)
    path, errors = ROOT / "docs" / "guide.md", []

    def run():
        names = {"__name__": "guide"}
        try:
            for line, block in python_blocks(path):
                exec(compile("\n" * (line - 1) + block, str(path), "exec"), names)
        except BaseException as error:  # the thread's; raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error
    assert "finished" in capsys.readouterr().out


def commands(page):
    """The commands of a page that have flags, each with its line, without what is optional or explains."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "  ")
    for found in re.finditer(r"^ *(?:[A-Z_]+=\S+ )*(.*)$|`([^`\n]+)`", text, re.MULTILINE):
        command = re.sub(r"^python -m gaternet_jax\.(tools\.|main)", "gaternet ", found[1] or found[2] or "")
        command = re.sub(r"^gaternet  ", "gaternet train ", command)
        command = re.sub(r"\[(--[^\]]*)\]", r"\1", re.sub(r"=[MN]\b", "=1", re.sub(r" +(?=-)", " ", command)))
        command = re.split(r"\s+#|\s{2,}|\s+\(|\s+>|\s+&& ", command)[0].strip()
        whole = " --" in command and not re.search(r"\.\.\.|[`{|]|--help", command)
        if whole and re.match(r"gaternet [a-z]+ |python -m benchmarks\.", command):
            yield text[: found.start()].count("\n") + 1, shlex.split(command)


COMMANDS = [
    pytest.param(words, id=f"{page.name}:{line}")
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "launch" / "README.md"]
    for line, words in commands(page)
]


class Parsed(BaseException):
    """Raised where a command has parsed its arguments, in place of what it does."""


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_of_the_pages_parse(words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    if words[:2] in (["gaternet", "train"], ["gaternet", "evaluate"]):
        check_flags_of_main(words[2:])
        return
    name = f"gaternet_jax.tools.{words[1]}" if words[0] == "gaternet" else words[2]
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [name, *words[2 if words[0] == "gaternet" else 3 :]])
    module = importlib.import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    with pytest.raises(Parsed):
        module.main()


def check_flags_of_main(words):
    from gaternet_jax.main import flags

    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name == "config":
            card, _, variant = value.rpartition("/")[2].removesuffix(".py").replace(".py:", ":").partition(":")
            if card == card.lower():  # not one of the reader's own
                importlib.import_module(f"gaternet_jax.configs.{card}").get_config(variant if variant.islower() else "")
        elif word.startswith("--"):
            assert name.removeprefix("config.") in FIELDS or name in flags.FLAGS, word


def section(page, title):
    return re.search(rf"^## {title}\n(.*?)^## ", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]


def test_the_walk_of_an_image_names_each_file_once():
    files = re.findall(r"`([\w/]+\.py)`", section(ROOT / "CONTRIBUTING.md", "The walk of one image"))
    assert [file for file in files if not (ROOT / "gaternet_jax" / file).exists()] == []
    assert len(files) == len(set(files)) > 30


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_files_and_modules_that_a_page_names_exist(page):
    """Names in capitals stand for files of the reader's own: configs/NAME.py."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:[\w/]*/)?[a-z0-9_]+\.py\b", text)
    modules = re.findall(r"python -m ((?:gaternet_jax|benchmarks|tests|docs)(?:\.[a-z_]+)+)\b(?!\.)", text)
    named += [module.replace(".", "/") + ".py" for module in modules]
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    there = [f"/{file.relative_to(ROOT)}".replace("/__main__.py", ".py") for file in files]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in there)] == []


def test_links_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
