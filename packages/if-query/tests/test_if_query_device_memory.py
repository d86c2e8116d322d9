"""Memory of accelerators and of main memory, where none of the former is at hand."""

from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from if_query import device_memory, fit_stages, query_memory
from if_query.device_memory import (
    Memory,
    free_host_memory,
    free_memory,
    held_memory,
    peak_memory,
    peak_of,
    wait_for_devices,
)
from if_query.models import Tracked
from if_query.out_of_memory import is_out_of_memory
from if_query.plan.eigen_costs import EigenCosts
from math_utils.curvature import Covariances, CurvatureConfig, MapFactors, decompose
from math_utils.curvature.decomposition import STACK_BYTES
from math_utils.linear_maps import find_linear_maps

FIRST, SECOND, HOST = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")


@pytest.fixture
def stand_ins_are_let_through():
    """The tests' hook on types asks for a whole fit where a part of one is enough."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Cuda:
    """Two devices, as ``torch.cuda`` speaks of them."""

    def __init__(self, *, is_initialized=True):
        self.is_initialized = lambda: is_initialized
        self.touched: list[tuple[str, int]] = []
        self.free = {0: 1_000, 1: 2_000}
        self.reserved = {0: 300, 1: 500}
        self.allocated = {0: 200, 1: 100}
        self.peak = {0: 250, 1: 400}

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def _of(self, what, device):
        place = device if isinstance(device, int) else device.index
        self.touched.append((what, place))
        return place

    def mem_get_info(self, device):
        return self.free[self._of("free", device)], 9_000

    def memory_reserved(self, device):
        return self.reserved[self._of("reserved", device)]

    def memory_allocated(self, device):
        return self.allocated[self._of("allocated", device)]

    def max_memory_allocated(self, device):
        return self.peak[self._of("peak", device)]

    def reset_peak_memory_stats(self, device):
        self._of("reset", device)

    def synchronize(self, device):
        self._of("synchronize", device)


@pytest.fixture
def put_cuda(monkeypatch):
    def put(**options):
        cuda = Cuda(**options)
        monkeypatch.setattr(device_memory, "torch", SimpleNamespace(cuda=cuda, device=torch.device))
        return cuda

    return put


def test_what_tensors_gave_back_to_the_allocator_is_free(put_cuda):
    put_cuda()
    assert free_memory([FIRST]) == 1_000 + 100
    assert free_memory([FIRST, FIRST, SECOND]) == 1_100 + 2_000 + 400
    both = free_memory([FIRST, HOST])
    assert both - 1_100 == pytest.approx(free_host_memory(), rel=0.2)


def test_held_and_peak_are_those_of_all_devices_and_waiting_is_for_all(put_cuda):
    cuda = put_cuda()
    assert held_memory().device == 300
    assert peak_memory().device == 650
    cuda.touched.clear()
    wait_for_devices()
    assert cuda.touched == [("synchronize", 0), ("synchronize", 1)]
    cuda.touched.clear()
    with peak_of() as found:
        assert cuda.touched == [("reset", 0), ("reset", 1)]
    assert found.device == 650


def test_a_run_on_the_cpu_does_not_start_a_device_that_is_there(put_cuda):
    cuda = put_cuda(is_initialized=False)
    wait_for_devices()
    with peak_of() as found:
        pass
    assert Memory(0, found.device) == Memory(0, held_memory().device) == Memory(0, 0)
    assert free_memory([HOST]) > 0
    assert cuda.touched == []


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_memory_that_a_library_of_cuda_could_not_have_is_out_of_memory(message):
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def test_covariances_are_decomposed_where_the_maps_are(monkeypatch, stand_ins_are_let_through):
    """Files are read into main memory; the device "meta" stands for an accelerator."""
    own = Covariances(torch.eye(3), torch.eye(2), 4)
    devices = {"a": torch.device("meta"), "b": HOST}
    seen = {}

    def stand_in(covariances, *, dtype):
        for name, one in covariances:
            seen[name] = {one.inputs.device, one.output_gradients.device}
        return iter(())

    monkeypatch.setattr(fit_stages, "decompose", stand_in)
    store = SimpleNamespace(
        read_finished_eigenbasis=lambda name: None,
        read_covariances=lambda name: own,
        finish_maps=lambda stage, checksums: None,
    )
    tracked = SimpleNamespace(maps=dict.fromkeys(devices), devices=lambda: devices)
    curvature = SimpleNamespace(eigen_dtype=torch.float64)
    fit_stages.decompose_covariances(
        SimpleNamespace(store=store, tracked=tracked, curvature=curvature)
    )
    assert seen == {name: {device} for name, device in devices.items()}


def test_main_memory_holds_the_factors_of_one_map_on_its_way_to_a_device(
    monkeypatch, stand_ins_are_let_through
):
    events = []
    monkeypatch.setattr(query_memory, "replace", lambda run, **changes: changes)

    def moved(factors, device, dtype):
        events.append(("to", str(device)))
        return factors

    monkeypatch.setattr(MapFactors, "to", moved)
    tracked = SimpleNamespace(maps={}, devices=lambda: {"a": FIRST, "b": SECOND})
    store = SimpleNamespace(
        strategy="identity",
        read_map_factors=lambda name: events.append(("read", name)) or MapFactors(),
    )
    memory = SimpleNamespace(factors_on_disk=False, queries_at_once=3)
    placed = query_memory.place_factors(SimpleNamespace(tracked=tracked), store, memory)
    assert list(placed["factors"].maps) == ["a", "b"]
    assert events == [("read", "a"), ("to", "cuda:0"), ("read", "b"), ("to", "cuda:1")]


def test_decompositions_in_stacks_take_the_memory_that_is_planned():
    """Measured on the CPU, where LAPACK goes through a stack with the workspace of one matrix."""
    width, num_maps = 512, 10
    model = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(num_maps))
    maps = find_linear_maps(model, lambda name: True)
    costs = EigenCosts(maps, CurvatureConfig(), dict.fromkeys(maps, FIRST))
    planned = costs.peak_bytes({}, itemsize=4)

    def read():
        for number, name in enumerate(maps):
            generator = torch.Generator().manual_seed(number)
            rows = torch.randn(2, width, width, generator=generator)
            yield name, Covariances(*(rows.mT @ rows), 1)

    list(decompose([next(read())], stack_bytes=STACK_BYTES))  # what first calls take
    before = held_memory().host
    with peak_of() as found:
        for _ in decompose(read(), stack_bytes=STACK_BYTES):
            pass
    taken = found.host - before
    assert taken > 2 * 8 * 2 * num_maps * width**2  # all went as one stack
    assert 0.7 * planned < taken < planned


def test_tracked_maps_say_where_their_weights_are():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2, device="meta"))
    tracked = Tracked(find_linear_maps(model, lambda name: True), 1.0, (), 0.0)
    assert tracked.devices() == {"0": HOST, "1": torch.device("meta")}
