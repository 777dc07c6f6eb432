"""Small vocabularies of the public kinds, as files: the public ones cannot be had here."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel


def clip_vocabulary(folder: Path, size: int = 300) -> Path:
    """CLIP's kind: bytes with and without the mark of a word's end, a few merges, two special tokens.

    Writes vocab.json and merges.txt into `folder`; 560 tokens hold every byte, fewer only the first ones.
    """
    letters = sorted(ByteLevel.alphabet())[: (size - 20) // 2]
    merges = ["t h", "th e</w>", "a n", "c a", "ca t</w>", "ã ģ", "Ð ¸</w>"]
    merges = [merge for merge in merges if set("".join(merge.split()).replace("</w>", "")) <= set(letters)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(m.replace(" ", "") for m in merges)]
    tokens += [f"unused{i}" for i in range(size - 2 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder
