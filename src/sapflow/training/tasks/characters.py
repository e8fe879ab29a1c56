"""English text character by character: the language reference that ships with CPython, for a causal transformer."""

from collections import Counter
from collections.abc import Iterable
from functools import cache, partial

import torch
from torch import Tensor, nn

from sapflow.errors import InputError
from sapflow.growth.host import TransformerHost
from sapflow.training.tasks.task import Data, Task

CONTEXT = 64  # characters that the host sees at once
VOCABULARY = 96  # symbols, the one for unknown characters included
TRAINING_SHARE = 0.9  # of the text, from its beginning; the rest is held out
TRAINING_WINDOWS = 640  # of CONTEXT characters; with them an epoch takes about a second on one core
VALIDATION_WINDOWS = 128
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Vocabulary:
    """The most frequent characters of a text, by number; 0 stands for every other.

    Args:
        text: where they are counted.
        size: how many numbers there are, the unknown one included.
    """

    def __init__(self, text: str, size: int) -> None:
        by_count = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))
        self.characters = [UNKNOWN, *sorted(character for character, _ in by_count[: size - 1])]
        self._numbers = {character: number for number, character in enumerate(self.characters)}

    def encode(self, text: str) -> Tensor:
        """Numbers int64 (len(text),)."""
        return torch.tensor([self._numbers.get(character, 0) for character in text], dtype=torch.int64)

    def decode(self, numbers: Tensor) -> str:
        """The text of numbers (length,)."""
        return "".join(self.characters[number] for number in numbers.tolist())


def reference_text() -> str:
    """All topics of Python's own help, in the order of their names.

    Raises:
        InputError: this Python comes without them.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise InputError(
            "task characters: this Python comes without the module pydoc_data.topics; use a complete installation"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


@cache
def load_characters() -> Data:
    """Windows of characters, int64 (windows, CONTEXT), and for each character the one that follows it.

    Raises:
        InputError: this Python comes without the text.
    """
    text = reference_text()
    held_out_from = int(TRAINING_SHARE * len(text))
    vocabulary = Vocabulary(text[:held_out_from], VOCABULARY)
    train = _windows(vocabulary.encode(text[:held_out_from]), TRAINING_WINDOWS)
    validation = _windows(vocabulary.encode(text[held_out_from:]), VALIDATION_WINDOWS)
    return Data(*train, *validation)


def _windows(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many windows, evenly spaced, and their labels."""
    every = numbers.unfold(0, CONTEXT + 1, 1)
    chosen = every[torch.arange(count) * (len(every) - 1) // (count - 1)]
    return chosen[:, :-1].contiguous(), chosen[:, 1:].contiguous()


def _adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate)


TASKS = (
    Task(
        "characters",
        load_characters,
        partial(TransformerHost, vocabulary=VOCABULARY, context=CONTEXT),
        batch_size=16,
        learning_rate=3e-3,
        make_optimizer=_adamw,
    ),
)
