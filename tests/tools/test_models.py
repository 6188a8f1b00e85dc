import pytest

from gaternet_jax.tools import models


def rows(capsys, *arguments):
    models.main(list(arguments))
    lines = capsys.readouterr().out.splitlines()
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def test_table_has_parameters_gates_and_macs(capsys):
    table = rows(capsys, "--models=resnet20,resnet18")
    assert table["model"] == ["parameters", "gater", "gates", "MACs dense", "MACs, all open", "MACs, half open"]
    assert table["resnet20-plain"] == ["272,474", "-", "-", "40.8 M", "40.8 M", "-"]
    assert table["resnet20-residual"][:3] == ["272,474", "275,368", "336"]
    assert int("272474") + 275_368 == 547_842  # the released model
    assert table["resnet18-plain"] == ["11,689,512", "-", "-", "1,814.1 M", "1,814.1 M", "-"]
    for variant in ("plain", "residual", "all", "wider", "se", "local"):
        assert f"resnet20-{variant}" in table
    dense, whole, half = (float(cell.rstrip(" M").replace(",", "")) for cell in table["resnet20-all"][3:])
    # With every convolution of a block half open, conv1 costs half, conv2 a quarter; stem, shortcuts, gater stay.
    assert dense / 4 < half - (whole - dense) < dense / 2


def test_unknown_models_are_refused(capsys):
    with pytest.raises(SystemExit, match="unknown part 'vgg'"):
        models.main(["--models=vgg", "--variants=plain"])
