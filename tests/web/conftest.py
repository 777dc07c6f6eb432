"""What the page's tests share: a studio with the smallest model."""

import micro
import pytest

from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.web.studio import Studio


@pytest.fixture(scope="session")
def studio() -> Studio:
    return Studio(Pipeline(micro.bundle()))
