"""A driver for Triton where there is no GPU: it compiles for one, loads nothing and launches nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime.driver import driver

from .keys import kernel_modules, settle

CAPABILITY = 90
PROPERTIES = {  # of an H100, as far as Triton asks
    "max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32,
    "sm_clock_rate": 1, "mem_clock_rate": 1, "mem_bus_width": 1,
}  # fmt: skip


class Utils:
    """Of a driver: loads nothing."""

    def load_binary(self, name, kernel, shared, device):
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device):
        return PROPERTIES

    def unload_module(self, module):
        pass


class Launcher:
    """Compiles the launcher in C, which the cache keeps, where this Triton has such, and calls nothing."""

    def __init__(self, source, metadata):
        if hasattr(nvidia, "make_launcher"):
            with contextlib.suppress(ImportError):  # compiled and kept; only loading it needs a driver
                nvidia.CudaLauncher(source, metadata)

    def __call__(self, *args):
        pass


class Driver:
    utils, launcher_cls = Utils(), Launcher

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability  # for Triton keeps what it compiled by the number of the device

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_capability(self, device):
        return divmod(self.capability, 10)


def utilities(folder: Path) -> None:
    """Compiles Triton's own helpers, linked like every launcher with an empty libcuda."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-x", "c", os.devnull, "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    with contextlib.suppress(ImportError):  # as above
        nvidia.CudaUtils()


def pretend(capability: int) -> None:
    """From here on Triton and the launchers believe in a GPU of this capability."""
    driver.set_active(Driver(capability))
    settle()
    for module in kernel_modules():
        if hasattr(module, "capability"):
            module.capability = lambda device: capability


def install() -> None:
    """From here on Triton believes in a GPU of CAPABILITY, and this library runs on it with CPU tensors."""
    from ncops import backends

    pretend(CAPABILITY)
    backends._interpreted = lambda: True
    for place, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(place, name, _zeroed(getattr(place, name)))  # indices that no kernel wrote
    for place, name in ((torch.Tensor, "addmm_"), (torch.Tensor, "normal_"), (torch.Tensor, "uniform_")):
        setattr(place, name, lambda self, *args, **options: self)
    torch.mm = torch.addmm = _product
    torch.randn = torch.rand = lambda *size, generator=None, **options: torch.zeros(*size, **options)
    torch.randint = lambda low, high, size, generator=None, **options: torch.zeros(size, dtype=torch.int64)


def _zeroed(make: Callable) -> Callable:
    return lambda *args, **options: make(*args, **options).zero_()


def _product(*args, out=None, out_dtype=None, **options):
    """In place of a library's product, which takes a CPU minutes."""
    a, b = args[-2:]
    return out if out is not None else a.new_zeros((a.shape[0], b.shape[1]), dtype=out_dtype or a.dtype)


def tf32(allowed: bool) -> None:
    """The user's setting counts for CUDA tensors alone: here in its place."""
    for name, module in list(sys.modules.items()):
        if name.startswith("ncops.ops.") and hasattr(module, "allow_tf32"):
            module.allow_tf32 = lambda x: allowed


@contextlib.contextmanager
def rows_noted(note: Callable[[str, str], object]) -> Iterator[None]:
    """``note`` is told each (kernel, dtype class) of the launch table that is asked for."""
    from ncops.triton_kernels import _launch

    launch = _launch.launch

    def noted(kernel, dtype, capability, tf32=False):
        note(kernel, _launch.dtype_class(dtype, tf32))
        return launch(kernel, dtype, capability, tf32)

    modules = [module for module in kernel_modules() if getattr(module, "launch", None) is launch]
    for module in modules:
        module.launch = noted
    try:
        yield
    finally:
        for module in modules:
            module.launch = launch
