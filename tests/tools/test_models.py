import pytest

from gaternet_jax import model_table as table
from gaternet_jax.models import registry
from gaternet_jax.models.build import abstract_model
from gaternet_jax.models.mac_counter import MacCounter
from gaternet_jax.tools import models
from tests.models.test_registry import Pool


def rows(capsys, *arguments):
    models.main(list(arguments))
    lines = capsys.readouterr().out.splitlines()
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def test_table_has_parameters_gates_and_macs(capsys):
    table = rows(capsys, "--models=resnet20,resnet18")
    assert table["model"] == ["parameters", "gater", "gates", "MACs dense", "MACs, all open", "MACs, half open"]
    assert table["resnet20-plain"] == ["272,474", "-", "-", "40.8 M", "40.8 M", "-"]
    assert table["resnet20-last"][:3] == ["272,474", "275,368", "336"]
    assert int("272474") + 275_368 == 547_842  # the released model
    assert table["resnet18-plain"] == ["11,689,512", "-", "-", "1,814.1 M", "1,814.1 M", "-"]
    for variant in ("plain", "last", "all", "wider", "se", "local"):
        assert f"resnet20-{variant}" in table
    dense, whole, half = (float(cell.rstrip(" M").replace(",", "")) for cell in table["resnet20-all"][3:])
    # With every convolution of a block half open, conv1 costs half, conv2 a quarter; stem, shortcuts, gater stay.
    assert dense / 4 < half - (whole - dense) < dense / 2


@pytest.mark.parametrize("name", ["resnet8", "resnet11_bottleneck", "resnet11_paper", "densenet16_k4", "shake26_2x4d"])
def test_one_trace_counts_what_a_trace_of_each_variant_does(name, capsys):
    for row, cells in list(rows(capsys, f"--models={name}").items())[2:]:
        config, size = table.model_config(row)
        counter = MacCounter(abstract_model(config), size)
        half = table.millions(counter.gater + counter.evenly(0.5)) if config.gating != "none" else "-"
        assert cells[3:] == [table.millions(macs) for macs in (counter.dense, counter.gater + counter.dense)] + [half]


def test_models_that_cannot_be_gated_are_counted(capsys, monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register("pool", ("pool",))(lambda match, options: Pool(options))
    assert rows(capsys, "--models=pool", "--variants=plain")["pool-plain"][:4] == ["40", "-", "-", "0.0 M"]


def test_unknown_models_are_refused(capsys):
    with pytest.raises(SystemExit, match="unknown part 'vgg'"):
        models.main(["--models=vgg", "--variants=plain"])
