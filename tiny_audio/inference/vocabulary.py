"""The bytes that each token of a tokenizer stands for: tokens may end within a character, so their texts would not do."""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece names the bytes of what it has no token for
SPACE = "\u2581"  # its space


def token_bytes(tokenizer, vocab_size: int) -> list[bytes]:
    """Returns the bytes of each token id below `vocab_size`; those of a text's tokens, joined, are the text in UTF-8.

    Special tokens, and ids that the tokenizer has no token for, have none. Knows both kinds of vocabularies that our families of
    decoders have: GPT-2's alphabet of bytes, and SentencePiece's characters.
    """
    symbols, added = tokenizer.convert_ids_to_tokens(range(vocab_size)), tokenizer.added_tokens_decoder
    bytes_of = _of_sentencepiece if "<0x00>" in symbols else _in_alphabet_of_bytes()

    def found(token_id: int, symbol: str | None) -> bytes:
        if token_id in added:
            return b"" if added[token_id].special else symbol.encode()
        return bytes_of(symbol) if symbol else b""

    return [found(token_id, symbol) for token_id, symbol in enumerate(symbols)]


def _in_alphabet_of_bytes() -> Callable[[str], bytes]:
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return lambda symbol: bytes(byte_of[letter] for letter in symbol)


def _of_sentencepiece(symbol: str) -> bytes:
    match = BYTE.fullmatch(symbol)
    return bytes([int(match[1], 16)]) if match else symbol.replace(SPACE, " ").encode()
