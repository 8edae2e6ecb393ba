"""pFedHR: alignment, groups, rules, copies, teachers, local training without them."""

from __future__ import annotations

import copy
import itertools
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedlightning import LocalOnly, PFedHR
from fedlightning.algorithms import Teacher
from fedlightning.algorithms.method import Aggregation, ServerSide
from fedlightning.algorithms.pfedhr import fine_tune, reassemble
from fedlightning.algorithms.reassembly import Cut, assemble, group_layers
from fedlightning.core.seeding import Key
from fedlightning.core.similarity import layer_distances, linear_cka
from fedlightning.errors import ConfigError
from fedlightning.models import LayeredNetwork, LayeredNetworks, StitchedNetwork
from tests.algorithms.test_systems import MIXED, Pictures, pictures
from tests.toys import fit, loop_of, net, same, state, trainer

COHORTS = [(0, 1), (1, 2), (0, 3)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def networks(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [
            LayeredNetwork(layers, (1, 4, 4), 3)
            for layers in (["conv3", "fc4"], ["conv2", "pool2", "fc5"], ["fc6", "fc4"], ["conv4"])
        ]


def run(algorithm, rounds=3, cohorts=COHORTS, **kwargs):
    built = trainer(algorithm, rounds=rounds, cohort=2, check_val_every_n_epoch=99, **kwargs)
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(net(module=LayeredNetworks, **MIXED), datamodule=Pictures())
    return loop_of(built)


# -- alignment --------------------------------------------------------------------------------


def test_alignment_does_not_see_rotation_scale_and_constants():
    x, y = random(12, 5), random(12, 7, seed=1)
    rotation = torch.linalg.qr(random(5, 5, seed=2)).Q
    plain = linear_cka(x, y).item()
    assert 0 < plain < 1
    assert linear_cka(x, x).item() == pytest.approx(1, abs=1e-12)
    assert linear_cka(-3 * x @ rotation, y).item() == pytest.approx(plain, abs=1e-12)
    constant = torch.cat([x, torch.full((12, 2), 4.0)], dim=1)
    assert linear_cka(constant, y).item() == pytest.approx(plain, abs=1e-12)


def test_alignment_is_that_of_gram_matrices_by_a_loop():
    x, y = random(6, 3), random(6, 2, seed=1)
    grams = []
    for values in (x, y):
        mean = [sum(row[j] for row in values.tolist()) / 6 for j in range(values.shape[1])]
        rows = [[v - m for v, m in zip(row, mean, strict=True)] for row in values.tolist()]
        grams.append([sum(a * b for a, b in zip(r, s, strict=True)) for r in rows for s in rows])
    one, other = grams
    inner = sum(a * b for a, b in zip(one, other, strict=True))
    want = inner / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5
    assert linear_cka(x, y).item() == pytest.approx(want, abs=1e-12)


def test_a_layer_is_half_from_itself_and_infinitely_far_where_nothing_is_known():
    x, y, dead = random(8, 3), random(8, 4, seed=1), torch.zeros(8, 2)
    found = layer_distances([x, y, dead], [y, x, dead])
    assert found.diagonal()[:2].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    assert found[0, 1].item() == pytest.approx(0.5 / linear_cka(x, y).item(), abs=1e-12)
    assert found[2].isinf().all()
    assert found[:, 2].isinf().all()


# -- groups and candidates --------------------------------------------------------------------


def test_groups_hold_what_is_near():
    places = torch.tensor([0.0, 10.0, 0.3, 10.2, 20.0, 0.1])
    found = group_layers((places[:, None] - places).abs() + 0.5, 3)
    assert found[0] == found[2] == found[5]
    assert found[1] == found[3]
    assert len(set(found)) == 3


def test_no_group_is_empty_with_equal_layers_or_dead_ones():
    assert sorted(set(group_layers(torch.full((4, 4), 0.5), 3))) == [0, 1, 2]
    distances = torch.full((3, 3), torch.inf)
    distances[:2, :2] = 0.5
    assert sorted(set(group_layers(distances, 2))) == [0, 1]
    assert group_layers(torch.full((2, 2), torch.inf), 5) == [0, 1] or sorted(
        group_layers(torch.full((2, 2), torch.inf), 5)
    ) == [0, 1]


def test_a_list_is_found_from_every_start_from_which_there_is_one():
    generator, kinds = torch.Generator().manual_seed(0), ("conv", "conv", "fc", "fc")
    several = 0
    for _ in range(20):
        groups = torch.randint(3, (8,), generator=generator).tolist()
        cuts = [Cut(n, i, kinds[i], groups[4 * n + i]) for n in range(2) for i in range(4)]
        wanted = set()
        for size in range(1, 5):
            for chain in itertools.permutations(cuts, size):
                if [c.index for c in chain] == sorted({c.index for c in chain}) and (
                    {c.operation for c in chain} == {"conv", "fc"}
                    and {c.group for c in chain} == set(groups)
                ):
                    wanted.add(chain[0])
        assert {chain[0] for chain in assemble(cuts)} == wanted
        several += 0 < len(wanted) < 8
    assert several > 5


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_candidates_obey_the_rules(groups):
    nets = networks()
    x, _ = pictures(10, seed=99)
    names = [list(dict(network.named_children())) for network in nets]
    kinds = {name.rstrip("0123456789") for layers in names for name in layers}
    plans = reassemble(nets, x, groups)
    assert plans
    for plan in plans:
        layers = [names[cut.network][cut.index] for cut in plan]
        assert all(one.index < other.index for one, other in pairwise(plan))
        assert "fc" not in "".join(layers).rstrip("0123456789fc")
        assert {name.rstrip("0123456789") for name in layers} == kinds
        assert len({cut.group for cut in plan}) == groups
    assert len(set(plans)) == len(plans)
    assert len({cut.network for plan in plans for cut in plan}) > 1


def test_layers_of_linear_networks_alone_make_candidates_of_one_operation():
    cuts = [Cut(0, 0, "fc", 0), Cut(0, 1, "fc", 1), Cut(1, 0, "fc", 0)]
    assert assemble(cuts) == [(cuts[0], cuts[1]), (cuts[2], cuts[1])]
    assert assemble([Cut(0, 0, "fc", 0), Cut(1, 0, "conv", 1)]) == []


# -- stitched networks ------------------------------------------------------------------------


def test_a_stitched_network_by_hand():
    one, other = networks()[:2]
    built = StitchedNetwork.of([(one, "conv1"), (other, "pool1"), (one, "fc1")])
    x, _ = pictures(5, seed=1)
    h = F.relu(F.conv2d(x, one.conv1[0].weight, one.conv1[0].bias, padding=1)).flatten(1)
    h = F.max_pool2d(built.stitches[1](h).reshape(5, 2, 4, 4), 2).flatten(1)
    h = F.relu(F.linear(built.stitches[2](h), one.fc1[0].weight, one.fc1[0].bias))
    assert torch.allclose(built(x), built.classifier(h), atol=1e-6)
    assert isinstance(built.stitches[0], nn.Identity)
    assert [type(layer) for layer in built.stitches[1]] == [nn.Linear, nn.ReLU]
    assert built.classifier.weight.shape == (3, 4)


def test_what_is_needed_to_take_images_and_give_logits_is_added_and_no_more():
    one, other = networks()[0], networks()[3]
    inner = StitchedNetwork.of([(one, "fc1"), (other, "fc1")])
    assert inner.stitches[0][0].weight.shape == (3 * 4 * 4, 16)
    assert isinstance(inner.classifier, nn.Identity)
    assert inner(pictures(2, seed=1)[0]).shape == (2, 3)
    with pytest.raises(ConfigError, match="1 layers, 2 shapes and 1 stitches"):
        StitchedNetwork([one], [(1,), (2,)], [None])


def test_fine_tuning_a_candidate_changes_no_other_network():
    nets = networks()
    x, y = pictures(10, seed=99)
    before = [state(network) for network in nets]
    first, second = (StitchedNetwork.of([(nets[0], "conv1"), (nets[3], "fc1")]) for _ in range(2))
    still = state(second)
    fine_tune(first, x, y, 2, Key(0, "server"))
    assert all(same(state(network), old) for network, old in zip(nets, before, strict=True))
    assert same(state(second), still)
    assert not torch.equal(first.layers[0][0].weight, nets[0].conv1[0].weight)


# -- a federation -----------------------------------------------------------------------------


def test_the_server_works_on_copies_and_an_unchosen_client_keeps_its_network_and_teacher():
    one, two = run(PFedHR(groups=2), rounds=1), run(PFedHR(groups=2), rounds=2)
    assert same(one.client_store.get(0), two.client_store.get(0))
    for key in ("plan", "values"):
        name = f"pfedhr_teacher/0/{key}"
        assert torch.equal(one.server.state_dict()[name], two.server.state_dict()[name])
    assert set(state(one.module)) == set(state(two.module))
    assert same(state(one.module), state(two.module)), "the global model is as it started"


def sent(module, client):
    values = {key: v for key, v in module.state_dict().items() if key in module.client_keys(client)}
    return {f"pfedhr_network/{key}": v.clone() for key, v in (
        values | module.client_start(client)).items()}  # fmt: skip


def aggregation(module, clients=(0, 1, 3)):
    side = ServerSide(module, lambda: iter([pictures(10, seed=99)]), Key(0, "server", round=4))
    return Aggregation({}, {}, [(client, sent(module, client)) for client in clients], side=side)


def test_messages_and_module_are_unchanged_by_the_servers_work():
    module = net(module=LayeredNetworks, **MIXED)
    given = aggregation(module)
    before, messages = state(module), copy.deepcopy(given.individual)
    teachers = Teacher(groups=2).on_aggregate(given)
    assert same(before, state(module))
    assert all(same(dict(a), dict(b)) for (_, a), (_, b) in zip(
        messages, given.individual, strict=True))  # fmt: skip
    assert {key.split("/")[1] for key in teachers} == {"0", "1", "3"}
    assert all(len(teachers[f"pfedhr_teacher/{client}/plan"]) >= 2 for client in (0, 1, 3))


def test_a_client_trains_with_its_teacher_by_hand():
    strength, cohorts = 2.0, [(0, 1), (1,)]
    algorithm = PFedHR(strength, groups=2)
    one, two = run(algorithm, rounds=1, cohorts=cohorts), run(algorithm, 2, cohorts=cohorts)
    module = net(module=LayeredNetworks, **MIXED)
    plan, values = (one.server.state_dict()[f"pfedhr_teacher/1/{n}"] for n in ("plan", "values"))
    nets = [module.network(name) for name in module.architectures]
    teacher = StitchedNetwork.of([(nets[a], list(nets[a].shapes)[i]) for a, i in plan.tolist()])
    place = 0
    for parameter in teacher.parameters():
        piece = values[place : place + parameter.numel()]
        parameter.data = piece.reshape(parameter.shape)
        place += parameter.numel()
    assert place == len(values)
    module.load_state_dict({**module.state_dict(), **one.client_store.get(1)})
    student = module.networks["conv"]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    own = Pictures()
    own.setup()
    for x, y in own.batches(1, "train", key=Key(one.seed, "fit", 1, 1)):
        optimizer.zero_grad()
        p, q = student(x).softmax(1), teacher(x).softmax(1).detach()
        loss = F.cross_entropy(student(x), y) + strength * (p * (p / q).log()).sum(1).mean()
        loss.backward()
        optimizer.step()
    found, want = two.client_store.get(1), module.state_dict()
    assert all(torch.allclose(found[key], want[key], atol=1e-5) for key in found)
    local = run(LocalOnly(), 2, cohorts=cohorts).client_store.get(1)
    assert not torch.allclose(found["networks.conv.fc1.0.weight"],
                              local["networks.conv.fc1.0.weight"], atol=1e-4)  # fmt: skip


def test_switched_off_it_is_local_training_bit_for_bit():
    ours, local = run(PFedHR(strength=0.0, groups=2)), run(LocalOnly())
    for client in range(4):
        assert same(ours.client_store.get(client), local.client_store.get(client))
    learns = run(PFedHR(strength=1.0, groups=2))
    assert not same(learns.client_store.get(1), local.client_store.get(1))


@pytest.mark.filterwarnings("ignore:round 1|round 2")
def test_where_no_candidate_obeys_clients_train_alone_and_a_warning_says_so():
    with pytest.warns(UserWarning, match=r"round 0: no network .* clients 0, 1 in 6 groups.*Lower"):
        ours = run(PFedHR(groups=6))
    local = run(LocalOnly())
    for client in range(4):
        assert same(ours.client_store.get(client), local.client_store.get(client))
        assert len(ours.server.state_dict()[f"pfedhr_teacher/{client}/plan"]) == 0


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(ConfigError, match="PFedHR cuts networks into layers, and Net does not"):
        fit(net(), PFedHR(), datamodule=Pictures(), check_val_every_n_epoch=99)
    with pytest.raises(ConfigError, match=r"algorithm\.groups must be an integer >= 1, got 0"):
        PFedHR(groups=0)
    with pytest.raises(ConfigError, match="needs a server that has the module"):
        Teacher().on_aggregate(Aggregation({}, {}))
