"""Batches for the training loop: deterministic by seed, sharded by process, resumable at any step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import grain

from mvader_jax.data.batches import (
    Batch,
    BatchFn,
    Feed,
    Objective,
    Shape,
    captioning_batch,
    contrastive_batch,
    diffusion_batch,
    pixel_batch,
)
from mvader_jax.data.buckets import Buckets
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Damage, Reader
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.open import open_interleaved, open_pairs, open_pictures, open_texts
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import Tokenizer

#: More steps than any run has, far below what grain can count.
_ENDLESS = 1 << 40


def make_loader(
    config: DataConfig,
    objective: Objective,
    tokenizer: Tokenizer | None,
    *,
    batch_size: int,
    image_size: int = 0,
    image_tokens: int = 0,
    encoder_size: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    groups: int = 1,
    split: Split = "train",
    images: bool = True,
    picture_queries: bool = False,
) -> Loader:
    """An endless iterator over this process's rows of every global batch.

    image_size: of the target pictures; 0 for the config's own.
    batch_size, groups: of the global batch, groups in the order of its rows, equally many a process.
    image_tokens, encoder_size: tokens of an image prompt, and the side of the image encoder's input.
    images: captioning with the image before the caption, or the caption alone. picture_queries:
        contrastive with the record's picture as the query (scenes have one, JSONL pairs do not).
    The global batch of a step is the same for every number of processes. Raises UserError for data that
    does not exist or does not suit the objective, and from `next` when too many records are damaged.
    """
    if image_size:
        config = dataclasses.replace(config, image_size=image_size)
    shape = Shape(batch_size, groups, process_index, process_count, image_tokens, encoder_size)
    if objective != "vae" and tokenizer is None:
        raise UserError(f"the {objective} objective needs a tokenizer")
    seed = config.seed
    if config.precomputed and objective not in ("captioning", "diffusion"):
        raise UserError(f"the {objective} objective reads no precomputed latents or features")
    pairs = objective == "contrastive"
    sources = open_pairs(config, split, picture_queries) if pairs else open_pictures(config, split)
    reader: Feed
    if config.aspect_buckets:
        if config.p_interleaved or config.precomputed:
            raise UserError("aspect_buckets go with neither interleaved prompts nor precomputed latents")
        shapes = config.source.shapes(sources)
        reader = Buckets(sources, shapes, config.aspect_buckets, config.source.weights, seed, config.shuffle)
    else:
        reader = Reader(sources, config.source.weights, seed, config.shuffle)
    make: BatchFn
    if objective == "vae":
        make = pixel_batch(reader, shape, config)
    elif objective == "captioning":
        assert tokenizer is not None
        make = captioning_batch(reader, shape, config, tokenizer, images)
    elif objective == "contrastive":
        assert tokenizer is not None
        make = contrastive_batch(reader, shape, config, tokenizer, picture_queries)
    else:
        assert tokenizer is not None
        interleaved = None
        if config.p_interleaved:
            interleaved = Reader(open_interleaved(config, split), (), seed + 1, config.shuffle)
        make = diffusion_batch(reader, interleaved, shape, config, tokenizer)
    return Loader(make, config, batch_size, len(reader))


class Loader(Iterator[Batch]):
    """Batches in order, read ahead by threads, or by processes of as many threads each.

    Its state is plain JSON: the number of samples seen by all processes, and the damaged records that
    this one has passed over.
    """

    def __init__(self, make: BatchFn, config: DataConfig, batch_size: int, records: int) -> None:
        self._make = make
        self._config = config
        self._batch_size = batch_size
        self._records = records
        self.step = 0
        self.damaged: dict[tuple[int, int], str] = {}
        self._batches: Iterator[tuple[Batch, list[Damage]]] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._start()
        batch, passed = next(self._batches)
        self.step += 1
        for damage in passed:
            self.damaged[damage.source, damage.index] = damage.reason
            if len(self.damaged) > self._config.bad_limit:
                raise UserError(
                    f"{len(self.damaged)} records of the data are damaged, more than bad_limit "
                    f"{self._config.bad_limit}; the last: {damage.reason}"
                )
        return batch

    def make(self, step: int) -> Batch:
        """This process's rows of a step, made here and now, without reading ahead."""
        return self._make(step)[0]

    def get_state(self) -> dict[str, Any]:
        return {
            "samples": self.step * self._batch_size,
            "records": self._records,
            "damaged": [[source, index, reason] for (source, index), reason in self.damaged.items()],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken, also with another number of processes or batch size.

        Raises UserError if the data has changed or the samples seen are no whole number of batches.
        """
        if state["records"] != self._records:
            raise UserError(
                f"the data has {self._records} records, but the run began with {state['records']}"
            )
        self.step, rest = divmod(int(state["samples"]), self._batch_size)
        if rest:
            raise UserError(
                f"the run has seen {state['samples']} samples, which is no whole number of batches of "
                f"{self._batch_size}"
            )
        self.damaged = {(int(source), int(index)): str(reason) for source, index, reason in state["damaged"]}
        self._batches = None

    def _start(self) -> Iterator[tuple[Batch, list[Damage]]]:
        steps = grain.MapDataset.range(self.step, _ENDLESS).map(self._make)
        threads = max(self._config.threads, 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = steps.to_iter_dataset(options)
        if self._config.workers:
            from absl import flags

            # grain's child processes read absl's flags, which nobody else here parses.
            flags.FLAGS.mark_as_parsed()
            children = grain.MultiprocessingOptions(
                num_workers=self._config.workers, per_worker_buffer_size=2
            )
            batches = batches.mp_prefetch(children)
        return iter(batches)


def captions_of(config: DataConfig, count: int) -> list[str]:
    """Captions of the first `count` positions of a run, for training a tokenizer.

    Contrastive pairs give queries and positives alike.
    """
    reader = Reader(open_texts(config), config.source.weights, config.seed, config.shuffle)
    texts: list[str] = []
    for position in itertools.count():
        if len(texts) >= count:
            return texts[:count]
        record, _ = reader.read(position, lambda r: r)
        texts += [record[name] for name in ("caption", "query", "positive") if name in record]
    raise AssertionError
