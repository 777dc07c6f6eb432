"""Batches for the training loop: deterministic by seed, sharded by process, resumable at any step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain

from mvader_jax.data.batches import Batch, BatchFn, Feed, Shape
from mvader_jax.data.buckets import Buckets
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Damage, Dataset, Reader
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.open import open_texts
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import Tokenizer

#: More steps than any run has, far below what grain can count.
_ENDLESS = 1 << 40


class Objective(Protocol):
    """What is asked of an objective here (`train/objectives/base.py`)."""

    def check(self, data: DataConfig) -> None: ...

    def sources(self, data: DataConfig, split: Split) -> Sequence[Dataset]: ...

    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn: ...


def make_loader(
    config: DataConfig,
    objective: Objective,
    tokenizer: Tokenizer | None,
    shape: Shape,
    split: Split = "train",
) -> Loader:
    """An endless iterator over this process's rows of every global batch.

    The global batch of a step is the same for every number of processes. Raises UserError for data that
    does not exist or does not suit the objective, and from `next` when too many records are damaged.
    """
    objective.check(config)
    sources = objective.sources(config, split)
    weights, seed = config.source.weights, config.seed
    reader: Feed
    if config.aspect_buckets:
        shapes = config.source.shapes(sources)
        reader = Buckets(sources, shapes, config.aspect_buckets, weights, seed, config.shuffle)
    else:
        reader = Reader(sources, weights, seed, config.shuffle)
    make = objective.batches(reader, config, shape, tokenizer, split)
    return Loader(make, config, shape.batch_size, len(reader))


class Loader(Iterator[Batch]):
    """Batches in order, read ahead by threads, or by processes of as many threads each.

    Its state is plain JSON: the number of samples seen by all processes, and the damaged records that
    this one has passed over.
    """

    def __init__(self, make: BatchFn, config: DataConfig, batch_size: int, records: int) -> None:
        self._make = make
        self._config = config
        self._batch_size = batch_size
        #: In all data sets of the split.
        self.records = records
        self.step = 0
        self.damaged: dict[tuple[int, int], str] = {}
        self._notices: list[str] = []
        self._batches: Iterator[tuple[Batch, list[Damage]]] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._start()
        batch, passed = next(self._batches)
        self.step += 1
        for damage in passed:
            if not self.damaged:
                self._notices.append(f"a damaged record is passed over: {damage.reason}")
            self.damaged[damage.source, damage.index] = damage.reason
            self._check(damage)
        return batch

    def notices(self) -> list[str]:
        """What a person should know, said since the last call: the first record that was passed over."""
        told, self._notices = self._notices, []
        return told

    def _check(self, last: Damage) -> None:
        limit, share = self._config.bad_limit, self._config.bad_share
        if len(self.damaged) > limit:
            raise UserError(
                f"{len(self.damaged)} records of the data are damaged, more than bad_limit {limit}; the last: "
                f"{last.reason}"
            )
        count = sum(source == last.source for source, _ in self.damaged)
        if count > share * last.of:
            raise UserError(
                f"{count} of the {last.of} records of a data set are damaged, more than bad_share {share}; the "
                f"last: {last.reason}"
            )

    def make(self, step: int) -> Batch:
        """This process's rows of a step, made here and now, without reading ahead."""
        return self._make(step)[0]

    def get_state(self) -> dict[str, Any]:
        return {
            "samples": self.step * self._batch_size,
            "records": self.records,
            "damaged": [[source, index, reason] for (source, index), reason in self.damaged.items()],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken, also with another number of processes or batch size.

        Raises UserError if the data has changed or the samples seen are no whole number of batches.
        """
        if state["records"] != self.records:
            raise UserError(f"the data has {self.records} records, but the run began with {state['records']}")
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


def captions_of(config: DataConfig, count: int, *, positions: int | None = None) -> list[str]:
    """`count` captions of a run's first positions, for training a tokenizer; no more than those of `positions`.

    Contrastive pairs give queries and positives alike.
    """
    reader = Reader(open_texts(config), config.source.weights, config.seed, config.shuffle)
    texts: list[str] = []
    for position in itertools.count() if positions is None else range(positions):
        if len(texts) >= count:
            break
        record, _ = reader.read(position, lambda r: r)
        texts += [record[name] for name in ("caption", "query", "positive") if name in record]
    return texts[:count]
