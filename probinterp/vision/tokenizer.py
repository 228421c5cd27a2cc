"""A tokenizer for text towers whose token table holds only the words that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probinterp.vision.extra import open_clip_module


class ReducedTokenizer:
    """CLIP's byte-pair tokens, renumbered to those in use.

    Token j of the reduced table is token ``token_ids[j]`` of CLIP's; the order is kept, so that
    the end token has the largest number, by which a CLIP text tower finds it.

    Parameters
    ----------
    token_ids
        Numbers in use of CLIP's 49,408 tokens, ascending: 0 (padding) first, the end last.
    context_length
        Tokens a text is padded to; longer texts are refused.

    Raises
    ------
    ValueError
        If the numbers do not ascend, or a text is too long or has an unknown token.
    """

    def __init__(self, token_ids: Sequence[int], context_length: int) -> None:
        self._clip = open_clip_module().SimpleTokenizer(context_length=context_length)
        if list(token_ids) != sorted(set(token_ids)) or token_ids[-1] != self._clip.eot_token_id:
            raise ValueError(
                f"token_ids must ascend and end with {self._clip.eot_token_id}, "
                f"got {list(token_ids)}."
            )
        self.token_ids = tuple(token_ids)
        self.context_length = context_length
        self._number = {token: j for j, token in enumerate(self.token_ids)}

    @classmethod
    def of(cls, texts: Sequence[str], context_length: int) -> ReducedTokenizer:
        """Tokenizer with just the tokens of ``texts``."""
        clip = open_clip_module().SimpleTokenizer(context_length=context_length)
        return cls(sorted({0, *clip(list(texts)).flatten().tolist()}), context_length)

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Numbers (texts, context length), int64, padded with 0."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [self._numbers(text) for text in texts]
        padded = torch.zeros(len(rows), self.context_length, dtype=torch.int64)
        for row, numbers in zip(padded, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        return padded

    def _numbers(self, text: str) -> list[int]:
        inner = self._clip.encode(text)
        tokens = [self._clip.sot_token_id, *inner, self._clip.eot_token_id]
        if len(tokens) > self.context_length:
            raise ValueError(
                f"{text!r} has {len(tokens)} tokens, start and end included; "
                f"the text tower reads {self.context_length}."
            )
        unknown = [self._clip.decode([t]).strip() for t in inner if t not in self._number]
        if unknown:
            raise ValueError(f"{text!r} has words that the text tower does not know: {unknown}.")
        return [self._number[token] for token in tokens]
