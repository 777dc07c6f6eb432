"""Writing one shard of a TFDS data set: ArrayRecord, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from mvader_jax.data.building.admit import Rejected
from mvader_jax.storage.atomic import whole_file

SUFFIX = "array_record"


def shard_path(directory: pathlib.Path, name: str, index: int, count: int) -> pathlib.Path:
    """The path that TFDS expects of shard `index` of `count` in the split `train`."""
    return directory / f"{name}-train.{SUFFIX}-{index:05d}-of-{count:05d}"


class ShardWriter:
    """Records of `schema.features` into one file, renamed to its name when it is complete."""

    def __init__(self, path: pathlib.Path) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        from mvader_jax.data.building.schema import features

        self.path = path
        self._features = features()
        self._serializer = ExampleSerializer(self._features.get_serialized_info())
        with contextlib.ExitStack() as stack:
            partial = stack.enter_context(whole_file(path))
            # One record a group: training reads in random order.
            self._writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")
            stack.callback(self._writer.close)
            self._stack = stack.pop_all()
        self._hash = hashlib.sha256()
        self.records = 0
        self.bytes = 0

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """A record's bytes. Raises Rejected for values that its features cannot hold."""
        try:
            return bytes(self._serializer.serialize_example(self._features.encode_example(record)))
        except Exception as error:  # TFDS checks by whatever its features raise
            raise Rejected(f"record cannot be stored ({type(error).__name__})") from None

    def write(self, record: Mapping[str, Any], data: bytes) -> None:
        """data: what `encode` made of the record."""
        self._writer.write(data)
        # Of the record, not of its bytes: the order of columns in these is any.
        for name in sorted(record):
            value = record[name]
            self._hash.update(name.encode() + (value if isinstance(value, bytes) else repr(value).encode()))
        self.records += 1
        self.bytes += len(data)

    def digest(self) -> str:
        """Of all records written so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def write_metadata(
    directory: pathlib.Path, name: str, records: Sequence[int], size: int, description: str
) -> None:
    """dataset_info.json and features.json, by which TFDS knows the folder. size: bytes of all records."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    from mvader_jax.data.building.schema import features

    template = ShardedFileTemplate(
        dataset_name=name, data_dir=epath.Path(directory), split="train", filetype_suffix=SUFFIX
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=list(records), num_bytes=size, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(),
        split_infos=[split],
        description=description,
        check_data=False,  # TFDS would check through TensorFlow
    )
