"""The devices of a pod that is not there, for which a program is compiled."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.parallel.libtpu import prepare
from mvader_jax.parallel.pods import Topology


def devices(topology: Topology) -> list[Any]:
    """The devices a program is compiled for: one per chip, or one for each of its `cores`.

    Raises UserError where libtpu is not installed or does not know the shape.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plans are compiled by libtpu, which is missing: pip install 'mvader-jax[tpu]'")
    prepare()
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if min(topology.shape[:2]) < 2:  # less than a host's four chips, which libtpu takes for granted
        options["chips_per_host_bounds"] = (*topology.shape, 1)[:3]
    if topology.chip.chip_config:
        options["chip_config_name"] = topology.chip.chip_config
    try:
        found = list(topologies.get_topology_desc(topology.name, platform="tpu", **options).devices)
    except Exception as error:  # jaxlib raises its own XlaRuntimeError, ValueError or RuntimeError
        reason = str(error).splitlines()[0]
        if "libtpu" in reason and "not" in reason:
            raise UserError(f"plans are compiled by libtpu, which does not load: {reason}") from None
        raise UserError(f"libtpu does not know the topology {topology.name}: {reason}") from None
    return found


def places(found: Sequence[Any]) -> list[tuple[int, tuple[int, ...]]]:
    """(slice, coordinates) of each device."""
    return [(int(getattr(d, "slice_index", 0) or 0), tuple(d.coords)) for d in found]
