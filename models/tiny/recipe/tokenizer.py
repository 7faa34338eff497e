"""Trains the byte-level BPE and writes it with its chat template. Knows nothing of the model.

One thing is unusual: only the words in `words.GLUED`, which are never a value, carry a leading
space inside their token. Every other word is cut the same way wherever it stands, so copying
"Marla" from prose into a JSON string is copying the same tokens.
"""

import itertools
import json
from pathlib import Path

import corpus
import words
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 2048
NUM_ROWS = 1500
ROW_TOKENS = 512
MAX_LENGTH = 32_768

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% elif message['role'] == 'system' %}<|system|>"
    "{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _pattern() -> str:
    """Returns the regular expression that cuts text before BPE. It tries, in this order, glued
    words, words, single digits, signs, line ends and single spaces."""
    glued = "|".join(sorted(words.GLUED, key=len, reverse=True))
    return (
        rf" (?:{glued})(?!\p{{L}})|[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\n+|\s"
    )


def train_tokenizer(seed: int) -> Tokenizer:
    """Returns a tokenizer trained on rows of the corpus; the same seed gives the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_pattern()), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(corpus.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = (corpus.row(f"tokenizer-{seed}-{i}", ROW_TOKENS, 0.1) for i in range(NUM_ROWS))
    texts = itertools.chain.from_iterable(_without_specials(row) for row in rows)
    tokenizer.train_from_iterator(texts, trainer)
    bos = corpus.BOS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return tokenizer


def _without_specials(text: str) -> list[str]:
    """Returns the stretches of `text` between its special tokens."""
    for token in corpus.SPECIAL_TOKENS:
        text = text.replace(token, "\0")
    return [part for part in text.split("\0") if part]


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, which transformers
    reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {
        "bos_token": corpus.BOS,
        "eos_token": corpus.EOS,
        "pad_token": corpus.SPECIAL_TOKENS[-1],
    }
    _write_json(folder / "special_tokens_map.json", specials)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **specials,
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
