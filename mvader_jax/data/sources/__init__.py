"""Where records come from: one file a source, registered here by the name that configs know it under."""

from mvader_jax.data.sources.base import Source
from mvader_jax.data.sources.emoji import Emoji
from mvader_jax.data.sources.jsonl import Pairs
from mvader_jax.data.sources.scenes import Scenes
from mvader_jax.data.sources.stored import Records

Source.kinds = {"scenes": Scenes, "records": Records, "pairs": Pairs, "emoji": Emoji}
