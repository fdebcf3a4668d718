"""Torch modules as named arrays: which tensors, in whose memory, and what travels."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from p2p import DeepDist, UsageError
from p2p.adapters import adapter_of
from p2p.adapters.model import Model
from p2p.models.torch import tensors
from p2p.models.torch.adapter import ADAPTER


class Mixed(nn.Module):
    """Tied layers, a batch norm, a mask, a buffer that is not saved, and a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.plain = torch.arange(3.0)
        self.halves = nn.Parameter(torch.arange(8.0))
        self.norm.running_mean += 1

    def forward(self, x: Any) -> Any:
        return self.out(self.norm(self.embed(x)) * self.mask + self.table)


NAMES = [
    "embed.weight",
    "halves",
    "norm.bias",
    "norm.num_batches_tracked",
    "norm.running_mean",
    "norm.running_var",
    "norm.weight",
    "out.bias",
]


def arrive(module: Any) -> Any:
    """The module as a worker has it, with its numbers."""
    model = Model(module)
    there = Model.from_skeleton(model.skeleton())
    there.load(model.arrays())
    return there.model


def test_parameters_and_buffers_have_the_names_of_the_state_and_shared_ones_come_once() -> None:
    module = Mixed()
    assert adapter_of(module) is ADAPTER
    model = Model(module)
    assert sorted(model.names) == NAMES
    assert set(NAMES) < set(module.state_dict())


def test_tensors_with_one_memory_come_once() -> None:
    module = nn.Module()
    module.a = nn.Parameter(torch.ones(3))
    module.b = nn.Parameter(module.a.data)
    module.part = nn.Parameter(torch.empty(0))
    module.rest = nn.Parameter(torch.empty(0))
    assert Model(module).names == ("a", "part", "rest")
    module.c = nn.Parameter(module.a.data[1:])
    with pytest.raises(UsageError, match="'a' and 'c' of the model are the same memory"):
        Model(module)


def test_arrays_are_views_of_the_tensors() -> None:
    module = Mixed()
    Model(module).arrays()["out.bias"][...] = 7
    assert (module.out.bias == 7).all()
    with torch.no_grad():
        module.norm.weight.mul_(3)
    assert (Model(module).arrays()["norm.weight"] == 3).all()


def test_a_module_travels_without_the_numbers_of_its_tensors() -> None:
    module = nn.Sequential(nn.Linear(300, 300), nn.GRU(300, 300), nn.BatchNorm1d(300))
    assert sum(p.numel() for p in module.parameters()) > 600_000
    assert len(Model(module).skeleton()) < 20_000
    there = Model.from_skeleton(Model(module).skeleton()).model
    assert all(not p.any() for p in there.state_dict().values())


def test_a_module_is_on_a_worker_what_it_was() -> None:
    module = Mixed().eval()
    module.halves.requires_grad_(False)
    there = arrive(module)
    assert type(there) is Mixed
    assert not there.training
    assert there.out.weight is there.embed.weight
    assert not there.halves.requires_grad
    assert there.embed.weight.requires_grad
    assert isinstance(there.embed.weight, nn.Parameter)
    for name, tensor in module.state_dict().items():
        assert torch.equal(there.state_dict()[name], tensor), name
    assert there.plain.tolist() == [0, 1, 2]
    assert there.table.tolist() == [0, 1, 2, 3]
    x = torch.tensor([0, 3])
    assert torch.equal(there(x), module(x))


def test_views_of_one_storage_are_views_of_one_storage_on_a_worker() -> None:
    module = nn.Module()
    module.w = nn.Parameter(torch.arange(6.0))
    module.head = module.w.detach()[2:4]
    there = arrive(module)
    there.head[...] = 9
    assert there.w.tolist() == [0, 1, 9, 9, 4, 5]
    assert there.head.untyped_storage().nbytes() == 24


def test_a_recurrent_layer_trains_on_a_worker_the_weights_that_it_shows() -> None:
    there = arrive(nn.GRU(3, 3))
    x = torch.ones(2, 3)
    first, second = there(x)[0]
    Model(there).arrays()["weight_hh_l0"][...] += 1
    assert torch.equal(there(x)[0][0], first), "its state is zero"
    assert not torch.equal(there(x)[0][1], second)
    there(x)[0].sum().backward()
    assert there.weight_hh_l0.grad.any()


def test_numbers_of_parameters_that_are_not_chosen_travel_with_the_module() -> None:
    module = Mixed()
    model = Model(module, ["out.bias"])
    there = Model.from_skeleton(model.skeleton()).model
    assert torch.equal(there.embed.weight, module.embed.weight)
    assert not there.out.bias.any()
    assert module.out.bias.any()


def test_a_layout_that_is_not_contiguous_is_trained_all_the_same() -> None:
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    there = arrive(module)
    assert torch.equal(there.weight, module.weight)
    parameter = there.weight
    Model(there).load({name: array + 1 for name, array in Model(module).arrays().items()})
    assert there.weight is parameter
    assert torch.equal(there.weight, module.weight + 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(2, 2).half(), r"'weight' of the module is torch.float16, .*expected torch.float32"),
        (lambda: nn.Linear(2, 2).bfloat16(), r"torch.bfloat16, .* by module.float\(\)"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), r"torch.complex64, expected one of torch.float32"),
        (lambda: nn.LazyLinear(2), r"has no shape yet: call the module with some rows"),
        (lambda: nn.Linear(2, 2, device="meta"), r"is on no device, expected a plain dense tensor"),
        (lambda: nn.ReLU(), r"nothing to train"),
        (
            lambda: nn.Sequential(weight_norm(nn.Linear(2, 2))),
            r"'0' of the module is parametrized, .* torch.nn.utils in",
        ),
        (lambda: torch.jit.ScriptModule(), r"the module is compiled by torch.jit"),
    ],
)
def test_what_cannot_be_trained_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DeepDist(make())


def test_running_means_are_averaged_and_counts_are_summed() -> None:
    rules = Model(Mixed()).rules("damp")
    assert {name for name, rule in rules.items() if rule == "mean"} == {"norm.running_mean", "norm.running_var"}
    assert {name for name, rule in rules.items() if rule == "sum"} == {"norm.num_batches_tracked"}
    assert rules["embed.weight"] == "damp"


def test_a_process_without_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ADAPTER.bare(nn.Linear(2, 2))
    monkeypatch.delitem(sys.modules, "p2p.models.torch.tensors")
    monkeypatch.delattr("p2p.models.torch.tensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"no package torch: expected it wherever peers train"):
        ADAPTER.dressed(sent)


def test_torch_is_imported_for_modules_only() -> None:
    program = (
        "import sys, numpy, p2p, p2p.models.torch; from p2p import adapters; p2p.DeepDist({'w': numpy.zeros(1)}); "
        "list(adapters.everyone())[-1].preload(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.split() == ["False"]


# -------------------------------------------------------------------------------------------------- on another device


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tensors that say so (by `far`) were on a device that numpy does not reach."""
    monkeypatch.setattr(tensors, "is_here", lambda tensor: not hasattr(tensor, "far"))


@pytest.mark.usefixtures("far")
def test_a_module_on_another_device_is_read_and_written_by_copies() -> None:
    module = nn.Linear(3, 2)
    module.weight.far = True
    model = Model(module)
    assert not np.shares_memory(model.arrays()["weight"], module.weight.detach().numpy())
    assert (model.arrays()["weight"] == module.weight.detach().numpy()).all()
    wanted = {name: array + 1 for name, array in copy.deepcopy(model.arrays()).items()}
    model.load(wanted)
    assert (module.weight.detach().numpy() == wanted["weight"]).all()
    with torch.no_grad():
        module.weight.zero_()
    assert not model.arrays()["weight"].any()


def test_a_like_of_a_module_has_its_numbers_and_gives_them_back() -> None:
    module = Mixed()
    other = tensors.there(module, "cpu:0")
    assert other is not module
    with torch.no_grad():
        module.out.bias.fill_(5)
    assert tensors.there(module, "cpu:0") is other
    assert (other.out.bias == 5).all()
    with torch.no_grad():
        other.out.bias.fill_(6)
    tensors.level(other, module)
    assert (module.out.bias == 6).all()
    assert tensors.there(module, "cpu") is module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"to be trained on 'cuda', and this process has no such device .*device='cpu'"
    ):
        tensors.there(nn.Linear(2, 2), "cuda")


def test_a_module_on_two_devices_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(UsageError, match="is on cpu, meta, expected one device"):
        tensors.device_of(module)
