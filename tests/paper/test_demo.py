import micro
import PIL.Image

from mvader_jax.paper.demo import TASKS, demo
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings


def test_the_demo_draws_every_task_and_names_its_command(tmp_path) -> None:
    drawn = demo(Pipeline(micro.bundle()), tmp_path, SamplingSettings(steps=1), num_images=2)
    assert [one.task for one in drawn] == list(TASKS)
    for one in drawn:
        picture = PIL.Image.open(one.path)
        assert picture.width > 128 * 3 and picture.text["AI-generated"] == "true"
        assert one.command.startswith("mvader sample ")
    element = drawn[list(TASKS).index("element")]
    assert '"a green shape"' in element.command and "inputs/circle.png" in element.command
    style = drawn[list(TASKS).index("style")]
    assert '"a hollow shape"' in style.command and "inputs/circle.png" in style.command
