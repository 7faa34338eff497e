"""Small tokenizers of every kind, and the pieces that texts of answers are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from coordinator.answers.token_pieces import BYTE_ALPHABET, TokenPieces, kind_of

SPECIAL = "<end>"
PLAIN = "<think>"
"""An added token that is not special."""


def byte_level() -> Tokenizer:
    """GPT-2's kind. Bytes are tokens, and so are some words, and parts of characters."""
    character_of = {byte: character for character, byte in BYTE_ALPHABET.items()}
    texts = ["he", "llo", " w", "ö", "👍", "日本"]
    pieces = [*(bytes([byte]) for byte in range(256)), *(text.encode() for text in texts)]
    pieces += ["👍".encode()[:2], "👍".encode()[2:], "é".encode()[1:] + b"a"]
    vocabulary = {"".join(map(character_of.__getitem__, p)): i for i, p in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_added_tokens(tokenizer)


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: words carry a space, which the first one loses; what no word has is bytes."""
    words = ["<unk>", "▁", "▁▁", "▁he", "he", "llo", "日", "ö", "."]
    pieces = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_added_tokens(tokenizer)


def word_piece() -> Tokenizer:
    """BERT's kind: tokens are words, or the rest of one."""
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", "he", "##llo", "wor", "##ld", "."])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_added_tokens(tokenizer)


def metaspace() -> Tokenizer:
    """T5's kind, without bytes."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁he", -2.0), ("llo", -2.0), ("o", -3.0), ("日", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_added_tokens(tokenizer)


def words() -> Tokenizer:
    """One without a decoder: tokens with spaces between them."""
    return _with_added_tokens(Tokenizer(models.WordLevel({"a": 0, "b": 1, "": 2}, "a")))


def pieces_of(tokenizer: Tokenizer, skip_special_tokens: bool = False) -> TokenPieces:
    kind = kind_of(json.loads(tokenizer.to_str())["decoder"])
    assert kind is not None
    size = tokenizer.get_vocab_size() + 3  # models have rows that no token uses
    special = [tokenizer.token_to_id(SPECIAL)] if skip_special_tokens else []
    return TokenPieces(
        kind,
        size,
        tokenizer.id_to_token,
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
        special,
    )


def byte_pieces() -> TokenPieces:
    """Pieces of a tokenizer whose every token is one byte: its id."""
    character_of = {byte: character for character, byte in BYTE_ALPHABET.items()}
    return TokenPieces("byte-level", 256, character_of.get, decode_bytes)


def character_pieces() -> TokenPieces:
    """Pieces of a tokenizer whose every token is one character: its code point."""

    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    return TokenPieces("text", 0x3000, chr, decode)


def decode_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def _with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    tokenizer.add_tokens([AddedToken(PLAIN, special=False)])
    return tokenizer
