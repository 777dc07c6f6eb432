"""libtpu on a machine without a TPU. No import of JAX: this must come before it loads libtpu."""

from __future__ import annotations

import glob
import os

#: What libtpu reads to load without a TPU: no query of a metadata server, one imaginary host.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

#: The devices of a TPU's chips: of v2 to v4, and later ones.
_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def prepare() -> None:
    """Lets libtpu load on a machine without TPUs; what the environment says already stands."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def hush() -> None:
    """Where no TPU is attached, lets JAX find that out in silence: libtpu looks for the names of a pod's hosts, and
    prints that it found none. Where one is attached nothing changes, and what libtpu says is shown."""
    if not any(glob.glob(pattern) for pattern in _DEVICES):
        prepare()
