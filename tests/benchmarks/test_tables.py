"""The pages and the ledger agree; and what the tables make of made-up entries."""

import json

import pytest

from benchmarks import ledger, tables
from benchmarks.published import TABLE_1
from benchmarks.runs import ROOT
from benchmarks.study import SMALL_IMAGES, one
from gaternet_jax.errors import UserError

STATISTICS = {"open": 0.7, "always_on": 0.5, "always_off": 0.2, "input_dependent": 0.3}
START = {"starts": 1, "commit": "abcdef0123", "dirty": True, "device": "NVIDIA X", "devices": 2, "cores": 8}


@pytest.fixture(scope="module")
def results():
    return tables.Results(ledger.FOLDER)


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_pages_are_those_of_the_ledger(page, results):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.BLOCK.search(text)
    assert tables.fill(text, results) == text, "run python -m benchmarks.tables, and commit what it writes"


def test_every_table_is_on_the_page():
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("docs/results.md", "docs/paper_to_code.md")]
    assert sorted(match[1] for page in pages for match in tables.BLOCK.finditer(page)) == sorted(tables.BLOCKS)


def entry(model, error, seed=0, folder=None, **settings):
    """An entry of `study.one(*model)`, as far as tables read it."""
    run = one(*model, seed, **settings)
    return {
        "name": f"{run.name}-0", "config": ledger.difference(run.config(), folder), "epochs": model[-1], "seed": seed,
        "diverged": "" if error else "loss is nan", "test_error": error, "parameters": 270_000, "starts": [START],
        "macs": {"dense": 100, "gater": 10, "with_gates": 80}, "wall_seconds": 90.0, "images_per_second": 1234.5,
        "gate_statistics": STATISTICS if "gated" in model and error else None,
    }  # fmt: skip


def make(folder, *entries):
    for made in entries:
        (folder / f"{made['name']}.json").write_text(json.dumps(made))
    return tables.Results(folder)


def test_runs_stand_where_they_belong(tmp_path):
    plain, gated = (("cifar10", "resnet20", kind, "he", 200.0) for kind in ("plain", "gated"))
    screen = ("cifar10", "resnet20", "plain", "strong", 30.0)
    results = make(
        tmp_path,
        *(entry(plain, error, seed, tmp_path) for seed, error in enumerate((8.0, 8.5, 9.0))),
        entry(gated, 7.25, 0, tmp_path),
        entry(gated, None, 1, tmp_path),
        entry(screen, 9.5, 0, tmp_path),
        entry(plain, 1.0, 0, tmp_path, **{"data.cutout": 16}) | {"name": "other-0"},
    )
    table = tables.BLOCKS["cifar10"](results).splitlines()
    assert table[2] == "| ResNet-20 | 0.27 M | 0.27 M | 8.06 | 8.50 ± 0.50 (3 seeds) |  |  | 9.50 |"
    assert table[3] == "| ResNet-20-Gated | 0.27 M | 0.55 M | 6.88 | 7.25 (1 diverged) |  |  |  |"
    assert all(line.endswith("|  |  |  |  |") for line in table[4:]), "empty cells are empty"
    assert "| 8.75 | 8.50 ± 0.50 (3 seeds) | `he` |" in tables.BLOCKS["plain"](results)
    assert "| ResNet-20-Gated | `he`, 200 epochs | 70.0% | 30.0% | 50.0% | 20.0% | 80.0% |" in tables.all_gates(results)
    runs = tables.all_runs(results)
    assert runs.count("\n") == 1 + 7
    assert "| diverged | 200 | 1,234 | 1.5 | 2 x NVIDIA X | abcdef0* |" in runs
    assert "(../results/other-0.json) | 1.00 |" in runs
    assert tables.summary(results) == (
        "ResNet-20-Gated against ResNet-20 on CIFAR-10, test error in percent after 200 epochs: 7.25 (1 diverged) "
        "against 8.50 ± 0.50 (3 seeds) (recipe `he`). The paper: ResNet-20-Gated 6.88%, ResNet-20 8.06% on CIFAR-10."
    )
    results = make(tmp_path, entry(("cifar10", "resnet20", "lambda0.1", "he", 200.0), 9.25, 0, tmp_path))
    assert "; 9.25 against 8.50 ± 0.50 (3 seeds) (recipe `he`, lambda 0.1 and bias 0)." in tables.summary(results)


def test_the_summary_owns_up_to_short_schedules(tmp_path):
    assert tables.summary(make(tmp_path)).startswith("No full schedule of 200 epochs has been trained yet. The paper:")
    small = [entry(("cifar10", "resnet20", kind, "strong", 24.0), 20.0, 0, tmp_path, **SMALL_IMAGES)
             for kind in ("plain", "gated")]  # fmt: skip
    text = tables.summary(make(tmp_path, *small))
    assert "has been trained yet. ResNet-20-Gated against ResNet-20 on CIFAR-10 at 16 x 16 pixels" in text
    assert "| ResNet-20-Gated | 0.27 M | 20.00 | 70.0%" in tables.BLOCKS["cifar10-16px"](tables.Results(tmp_path))


def test_findings_are_rows(tmp_path):
    assert tables.findings(make(tmp_path)) == "Nothing yet."
    (tmp_path / "findings.json").write_text('[{"question": "Q", "setting": "S", "found": "F"}]')
    assert tables.findings(tables.Results(tmp_path)).splitlines()[-1] == "| Q | S | F |"


def test_an_unknown_block_is_named(results):
    with pytest.raises(UserError, match="unknown block 'cifar'; blocks are summary, cifar10"):
        tables.fill("<!-- ledger: cifar -->\n<!-- end -->\n", results)


def test_the_papers_table_is_complete():
    """The gains that the paper prints itself beside its gated rows."""
    for (data, backbone), gain in {
        ("cifar10", "resnet20"): 1.18, ("cifar10", "resnet56"): 1.02, ("cifar10", "resnet164"): 0.81,
        ("cifar100", "resnet20"): 1.60, ("cifar100", "resnet56"): 1.16, ("cifar100", "resnet164"): 1.83,
    }.items():  # fmt: skip
        plain, gated = (TABLE_1[data, backbone, kind][1] for kind in ("plain", "gated"))
        assert plain - gated == pytest.approx(gain)
        assert {(data, backbone, kind) for kind in ("wider", "se")} <= TABLE_1.keys()
