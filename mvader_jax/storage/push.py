"""A bundle onto the Hugging Face hub, with a model card that says what `mvader bundle --describe` says."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from mvader_jax.errors import UserError
from mvader_jax.storage import hub
from mvader_jax.storage.bundle_config import bundle_files, find_bundle, read_config
from mvader_jax.storage.describe import Description, describe, origin, size_in_words
from mvader_jax.storage.reader import ComponentReader

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def push(
    bundle: str | Path, repository: str, license: str, *, private: bool = False, revision: str | None = None
) -> str:
    """Uploads a bundle; returns the address that `Pipeline.load` takes, with the commit.

    repository: "ORG/NAME". license: as the hub names it. revision: the branch that is written. Raises UserError for
    what is no whole bundle, and as `hub.upload`.
    """
    if not license:
        raise UserError(
            "say under which licence the weights are, with --license; what they were made from sets bounds to it "
            "(docs/weights.md)"
        )
    path = find_bundle(bundle)
    for component in read_config(path)["components"]:
        ComponentReader(path / component)
    name = hub.parse(hub.PREFIX + repository.removeprefix(hub.PREFIX)).repository
    card = model_card(name, describe(path), license)
    files = partial(bundle_files, where=str(bundle))
    return hub.upload(path, name, files, card, private=private, revision=revision)


def model_card(repository: str, description: Description, license: str) -> str:
    """README.md of a repository "ORG/NAME". license: as the hub names it. Raises UserError for what is no such name."""
    if not _LICENSE.fullmatch(license):
        raise UserError(
            f"{license!r} is no name of a licence on the hub; such are apache-2.0, mit, cc-by-4.0, creativeml-openrail-m, "
            "and other"
        )
    draws = description.can == "draws"
    head = [f"license: {license}", "library_name: mvader_jax", "tags:", "- m-vader", "- jax"]
    if draws:
        head.append(
            f"pipeline_tag: {'image-to-image' if 'pictures' in description.takes else 'text-to-image'}"
        )
    title = repository.rpartition("/")[2]
    use = 'pipe("a red circle")' if draws else 'pipe.embed("a red circle")'
    rows = [
        f"| {name} | {record.get('parameters', 0):,} | {', '.join(record.get('dtypes', ()))} | {origin(record)} "
        f"| `{record.get('sha256', 'unknown')[:16]}` |"
        for name, record in description.components.items()
    ]
    facts = [f"- {line}" for line in description.lines()[:3]]
    return "\n".join(
        [
            "---",
            *head,
            "---",
            hub.MARK,
            f"# {title}",
            "",
            f"A bundle of [mvader_jax](https://pypi.org/project/mvader-jax), {size_in_words(description.nbytes)}.",
            "",
            *facts,
            "",
            "```python",
            "import mvader_jax as mv",
            "",
            f'pipe = mv.Pipeline.load("hf:{repository}")',
            use,
            "```",
            "",
            "| component | parameters | dtype | from | SHA-256 |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
