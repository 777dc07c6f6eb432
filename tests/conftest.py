"""Eight CPU devices for every test, set before JAX is imported."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads wait by spinning, which starves the worker beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
