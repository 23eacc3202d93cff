"""A tokenizer whose words are single letters."""

import json
from pathlib import Path

from transformers import CLIPTokenizer

WORDS = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in "abcdefgh")]


def tokenizer_of_letters(folder: Path, length: int) -> CLIPTokenizer:
    """WORDS in files of the folder; texts are cut after `length` tokens."""
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return CLIPTokenizer(*files, unk_token="<|endoftext|>", model_max_length=length)
