"""The patterns that cut a text into words before byte-level BPE, by the names that GGUF files have
for them in `tokenizer.ggml.pre`. A file holds the name alone.

The patterns are those of the models' own tokenizers, which llama.cpp follows
(src/llama-vocab.cpp). Each is applied to what those before it left between two cuts.
"""

from __future__ import annotations

from typing import NamedTuple

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"|\p{{N}}|{CASED_REST}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{CASED_REST}"
)
DIGIT = r"\p{N}"
# Escaped, as editors compose some of these characters, which changes what a range holds.
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
CJK_OF_V3 = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT)
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{LETTERS}]+",
    rf"\s?[{PUNCTUATION}]+",
    r"\s+$",
    CJK,
    r"\p{N}+",
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    CJK_OF_V3,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")


class PreTokenizer(NamedTuple):
    """What comes before byte-level BPE."""

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    """True if a word that is a token is not made of merges."""
    adds_bos: bool = False
    """True if texts begin with the token for that, unless the file says otherwise."""
    composes: bool = False
    """True if a text is brought into Unicode's composed form (NFC) first. llama.cpp leaves it as it
    is; it matters to a text in decomposed form alone, and models were trained so."""


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((GPT2,)),
    "phi-2": PreTokenizer((GPT2,)),
    "mpt": PreTokenizer((GPT2,)),
    "olmo": PreTokenizer((GPT2,)),
    "jais": PreTokenizer((GPT2,)),
    "trillion": PreTokenizer((GPT2,)),
    "exaone4": PreTokenizer((GPT2,)),
    "gigachat": PreTokenizer((GPT2,)),
    "a.x-4.0": PreTokenizer((GPT2,)),
    "mellum": PreTokenizer((GPT2,)),
    "granite-docling": PreTokenizer((GPT2,)),
    "starcoder": PreTokenizer((DIGIT, GPT2)),
    "refact": PreTokenizer((DIGIT, GPT2)),
    "command-r": PreTokenizer((DIGIT, GPT2)),
    "smollm": PreTokenizer((DIGIT, GPT2)),
    "codeshell": PreTokenizer((DIGIT, GPT2)),
    "exaone": PreTokenizer((DIGIT, GPT2)),
    "minerva-7b": PreTokenizer((DIGIT, GPT2)),
    "mellum2": PreTokenizer((DIGIT, GPT2)),
    "llama-bpe": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "llama3": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "llama-v3": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "falcon3": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "falcon-h1": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "pixtral": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "midm-2.0": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "lfm2": PreTokenizer((LLAMA3,), ignores_merges=True, adds_bos=True),
    "smaug-bpe": PreTokenizer((LLAMA3,)),
    "dbrx": PreTokenizer((LLAMA3,)),
    "chatglm-bpe": PreTokenizer((LLAMA3,)),
    "glm4": PreTokenizer((LLAMA3,), ignores_merges=True),
    "qwen2": PreTokenizer((QWEN2,), composes=True),
    "deepseek-r1-qwen": PreTokenizer((QWEN2,)),
    "megrez": PreTokenizer((QWEN2,)),
    "stablelm2": PreTokenizer((QWEN2,)),
    "hunyuan": PreTokenizer((QWEN2,)),
    "solar-open": PreTokenizer((QWEN2,)),
    "grok-2": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((QWEN35,)),
    "tekken": PreTokenizer((TEKKEN,), ignores_merges=True, adds_bos=True),
    "gpt-4o": PreTokenizer((GPT4O,)),
    "llama4": PreTokenizer((GPT4O,)),
    "kanana2": PreTokenizer((GPT4O,)),
    "deepseek-coder": PreTokenizer(DEEPSEEK_CODER),
    "deepseek-llm": PreTokenizer(DEEPSEEK_LLM),
    "deepseek-v3": PreTokenizer(DEEPSEEK_V3),
    "falcon": PreTokenizer(FALCON),
}
"""The names that are known. For another one nobody can tell how its model cuts a text."""
