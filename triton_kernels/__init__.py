"""Triton kernels of the ops, installed as ``ncops.triton_kernels``. Imported at the first call that needs them."""
