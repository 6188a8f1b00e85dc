"""Sites are numbered once, from the modules of a network that is built."""

from flax import nnx

from gaternet_jax.gating import GateSite
from gaternet_jax.gating.local import LocalHead
from gaternet_jax.gating.sites import number_sites


class Layer(nnx.Module):
    def __init__(self, size):
        self.site = GateSite("", 0, size) if size else None


class Block(nnx.Module):
    def __init__(self, *sizes):
        self.last, self.first = (Layer(size) for size in sizes)  # in the order in which they are set


class Network(nnx.Module):
    def __init__(self):
        self.stem = Layer(2)
        self.local = LocalHead(1, 1, number_sites(self), rngs=nnx.Rngs(0))  # of what there is so far
        self.blocks = nnx.List([Block(3, 4), Block(0, 5)])
        self.blocks[0].local = LocalHead(1, 1, number_sites(self.blocks[0]), rngs=nnx.Rngs(0))


def test_names_are_paths_and_offsets_follow_one_another():
    network = Network()
    sites = number_sites(network)
    assert sites == (
        GateSite("stem", 0, 2),
        GateSite("blocks.0.last", 2, 3),
        GateSite("blocks.0.first", 5, 4),
        GateSite("blocks.1.first", 9, 5),
    )
    assert (network.stem.site, network.blocks[1].last.site, network.blocks[1].first.site) == (sites[0], None, sites[3])


def test_a_layer_in_two_places_has_one_set_of_gates():
    network = Network()
    network.again = network.stem
    network.name = Layer(0)
    network.name.site = "a site of another kind"
    assert [site.name for site in number_sites(network)] == [
        "stem",
        "blocks.0.last",
        "blocks.0.first",
        "blocks.1.first",
    ]


def test_a_head_decides_the_sites_beside_it_that_no_other_one_decides():
    network = Network()
    sites = number_sites(network)
    assert network.blocks[0].local.sites == sites[1:3]
    assert network.local.sites == (sites[0], sites[3])
