"""The data sets as TFDS builders, for those who work with TFDS; `build` writes the same in parallel.

    builder = LaionAesthetics(source="img2dataset-output", data_dir="data", file_format="array_record")
    builder.download_and_prepare()
    records = builder.as_data_source(split="train")

TensorFlow is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mvader_jax.data.building.admit import Rejected, admit
from mvader_jax.data.building.catalogue import find_parts, known
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.report import Report
from mvader_jax.data.building.run import check_columns
from mvader_jax.data.building.schema import features


class CaptionedPictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What the data sets have in common: a source in parts, filters, and records of `schema.features`.

    After `download_and_prepare`, `report` says what was rejected and why.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def __init__(
        self, *, source: str | os.PathLike[str], filters: FilterConfig | None = None, **kwargs: Any
    ) -> None:
        """filters: default, those of `catalogue.KNOWN`. Raises UserError for a source of another kind."""
        self.filters = known(self.name).filters if filters is None else filters
        self.parts = find_parts(self.name, source)
        self.report = Report()
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=features(), description=known(self.name).description
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        check_columns(self.parts, self.filters)
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        seen: set[str] = set()
        for part in self.parts:
            for sample in part.samples(self.report.problems):
                self.report.read += 1
                try:
                    if sample.key in seen:
                        raise Rejected("key duplicated")
                    seen.add(sample.key)
                    record = admit(sample, self.filters)
                except Rejected as reason:
                    self.report.reject(str(reason), sample.key)
                    continue
                self.report.written += 1
                yield sample.key, record


class LaionAesthetics(CaptionedPictures):
    """LAION's captioned pictures from img2dataset's output, with the paper's filters."""


class ImageCaptions(CaptionedPictures):
    """Captioned pictures from a folder, a table or COCO's annotations."""


class EmojiCaptions(CaptionedPictures):
    """Noto's emoji under their names."""


class Scenes(CaptionedPictures):
    """The synthetic captioned world; its source is the number of scenes."""
