"""Peak FLOP/s of the devices, from a data sheet or measured."""

import functools
import math
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of each kind of device, from the vendors' data sheets.
VENDOR = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # the SXM form; the others are slower
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU v6e": 918e12,
}


def peak_flops(dtype: str) -> tuple[float, str]:
    """Return the peak FLOP/s of all devices for a type, and its origin in words."""
    kind = jax.devices()[0].device_kind
    if dtype == "bfloat16" and kind in VENDOR:
        return all_devices(VENDOR[kind]), "peak from the vendor's data sheet"
    return all_devices(matmul_rate(dtype)), f"peak measured: a large {dtype} matmul"


def all_devices(rate: float) -> float:
    """Scale the rate of one device to all; devices of a CPU share its cores."""
    on_cpu = jax.default_backend() == "cpu"
    return rate * (jax.process_count() if on_cpu else jax.device_count())


def matmul_rate(dtype: str, precision: str | None = None) -> float:
    """Measure FLOP/s of a large square matrix product on one device, the best of 8.

    precision: the `precision` of `jnp.matmul`; None is JAX's default.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    jax.block_until_ready(product(x, x))
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
