"""Tokens that a transformers tokenizer does not know, as of texts in a script that its model was not trained on."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

READ = 1000
"""Texts that are tokenized to find unknown tokens, evenly spaced."""
MANY = 0.1
"""A share of unknown tokens from which it is noted; of English texts with emojis it is about a hundredth."""


def unknown_note(
    name: str, texts: Sequence[str], load: Callable[[], Any], split: Callable[[Sequence[str]], tuple[list[str], ...]]
) -> tuple[str, ...]:
    """Return a note if an encoder's tokenizer does not know many tokens of texts, which it then cannot tell apart.

    Loads the tokenizer only if some text is not ASCII, all of which tokenizers know.

    Args:
        name: the encoder's.
        texts: the training texts.
        load: returns the tokenizer.
        split: returns texts as arguments of a tokenizer.
    """
    some = texts[:: max(1, len(texts) // READ)]
    if all(text.isascii() for text in some):
        return ()
    tokenizer = load()
    rows = tokenizer(*split(some), add_special_tokens=False, verbose=False)["input_ids"]
    numbers = list(chain.from_iterable(rows))
    share = numbers.count(tokenizer.unk_token_id) / max(1, len(numbers))
    if share < MANY:
        return ()
    return (
        f"{name} does not know {share:.0%} of the texts' tokens and reads all of these alike; take an encoder for this "
        "language or script: 'tfidf', which learns from the texts, or another transformers model",
    )
