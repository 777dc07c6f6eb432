"""What a person sees of a run while it goes on."""

from __future__ import annotations

import micro
import pytest

from mvader_jax.train.log import Watch


@pytest.mark.parametrize("interval", [0.5, 50.0, 250.0])
def test_the_time_left_is_told_however_far_apart_log_points_are(tmp_path, interval):
    watch = Watch(tmp_path, micro.train_config().stages["diffusion"], {}, quiet=True)
    with watch.progress(0, 1000):
        bar = watch._bar
        (task,) = bar.tasks
        for number in range(1, 11):
            bar.get_time = lambda at=number * interval: at
            watch.write(50 * number, {"loss": 1.0})
        assert task.time_remaining == pytest.approx(10 * interval)
    watch.close()
