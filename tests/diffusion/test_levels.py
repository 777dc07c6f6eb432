"""Which timesteps a run visits, against diffusers' own, and what is left of a run cut short."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from mvader_jax.diffusion.levels import levels_of, timesteps_of
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import ScheduleConfig, Spacing
from mvader_jax.errors import UserError
from mvader_jax.settings import from_dict

COUNTS = [1, 2, 3, 7, 10, 20, 27, 36, 37, 50, 100, 333, 334, 500, 600, 999]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_diffusers(spacing: Spacing, offset: int) -> None:
    config = ScheduleConfig(steps_offset=offset)
    settings = {"steps_offset": offset, "timestep_spacing": spacing}
    for steps in COUNTS:
        for theirs, endpoint in (
            (DDIMScheduler(**settings), False),
            (PNDMScheduler(**settings, skip_prk_steps=True), False),
            (DPMSolverMultistepScheduler(**settings), True),
        ):
            theirs.set_timesteps(steps)
            # Past the end of its own table DPM-Solver has no alpha-bar; ours is the last.
            expected = np.minimum(theirs.timesteps, 999).tolist()
            if isinstance(theirs, PNDMScheduler):  # which is told the second one twice
                expected = expected[:1] + expected[2:] if steps > 1 else expected
            ours = timesteps_of(config, steps, spacing, endpoint=endpoint)
            assert ours.tolist() == expected, (type(theirs), steps)


def test_trailing_and_linspace_begin_at_the_noisiest() -> None:
    trailing = ScheduleConfig(spacing="trailing")
    assert levels_of(trailing, 4).timesteps.tolist() == [999, 749, 499, 249]
    linspace = ScheduleConfig(spacing="linspace")
    assert levels_of(linspace, 4).timesteps.tolist() == [999, 666, 333, 0]
    assert levels_of(ScheduleConfig(), 4).timesteps.tolist() == [751, 501, 251, 1]
    # DPM-Solver's own, where the schedule names none; the schedule's, where it does.
    dpm = SAMPLERS["dpm-solver++2m"].levels
    assert dpm(ScheduleConfig(), 4).timesteps.tolist() == [999, 749, 500, 250]
    assert dpm(trailing, 4).timesteps.tolist() == [999, 749, 499, 249]
    assert dpm(ScheduleConfig(spacing="leading"), 4).timesteps.tolist() == [801, 601, 401, 201]


def test_a_schedule_of_before_has_no_spacing() -> None:
    assert from_dict(ScheduleConfig, {"steps_offset": 0}).spacing is None
    with pytest.raises(UserError, match="spacing is 'karras'; accepted: leading, trailing, linspace"):
        from_dict(ScheduleConfig, {"spacing": "karras"})


def test_levels_are_cut_from_the_front() -> None:
    whole = levels_of(ScheduleConfig(), 50)
    later = whole[20:][10:]
    assert (len(later), later.first, later.steps) == (20, 30, 50)
    np.testing.assert_array_equal(later.alphas, whole.alphas[30:])
    assert len(whole[50:]) == 0 and whole[:].steps == 50
    for wrong in (slice(None, 10), slice(None, None, 2)):
        with pytest.raises(ValueError, match="only first steps"):
            whole[wrong]


def test_where_the_last_step_ends() -> None:
    table = ScheduleConfig().alphas_cumprod()
    assert levels_of(ScheduleConfig(), 5).alphas[-1] == table[0]
    assert levels_of(ScheduleConfig(set_alpha_to_one=True), 5).alphas[-1] == 1.0
    # The PNDM paper's: alpha-bar one timestep later, the last of the schedule's own.
    paper = levels_of(ScheduleConfig(), 1000, alpha_later=1)
    np.testing.assert_array_equal(paper.alphas[:3], [table[999], table[999], table[998]])
    assert paper.timesteps[-1] == 0 and paper.alphas[-2] == table[1] and paper.alphas[-1] == table[0]


def test_noised() -> None:
    levels = levels_of(ScheduleConfig(), 10)[5:]
    alpha = ScheduleConfig().alphas_cumprod()[401]
    noised = levels.noised(jnp.full((1, 2, 2, 1), 3.0), jnp.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(noised, np.sqrt(alpha) * 3 + np.sqrt(1 - alpha), rtol=1e-6)
