"""A driver for Triton where there is no GPU: it compiles for one, loads nothing and launches nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import jit
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

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_capability(self, device):
        return divmod(CAPABILITY, 10)


def utilities(folder: Path) -> None:
    """Compiles Triton's own helpers, linked like every launcher with an empty libcuda."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-x", "c", os.devnull, "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    with contextlib.suppress(ImportError):  # as above
        nvidia.CudaUtils()


def install() -> None:
    """From here on Triton believes in a GPU of CAPABILITY, and this library runs on it with CPU tensors."""
    from ncops import backends

    driver.set_active(Driver())
    settle()
    backends._interpreted = lambda: True
    for module in kernel_modules():
        if hasattr(module, "capability"):
            module.capability = lambda device: CAPABILITY
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


def record(used: set[tuple[str, str]]) -> None:
    """Notes which (kernel, dtype class) of the launch table is asked for, and runs no kernel."""
    from ncops.triton_kernels import _launch

    jit.JITFunction.run = lambda self, *args, **options: None
    launch = _launch.launch

    def recorded(kernel, dtype, capability, tf32=False):
        used.add((kernel, _launch.dtype_class(dtype, tf32)))
        return launch(kernel, dtype, capability, tf32)

    for module in kernel_modules():
        if getattr(module, "launch", None) is launch:
            module.launch = recorded
