"""A Whisper of one layer, made by hand in a moment: it says SENTENCE, the more of it the longer it hears.

    encoder     a frame with sound becomes the first axis, a frame of padding the second
    decoder     each token lights its own axis, and that axis calls the next word. The cross attention adds up the
                sounding frames of the 30 s window; the less there are, the stronger is the call for the end

So the first word needs 0.5 s of sound, the second 1 s, and so on.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ctranslate2.specs import WhisperSpec
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SENTENCE = "turn on the lamp in my kitchen"
SECONDS_PER_WORD = 0.5

WIDTH = 64
MELS = 80
SOUND, PADDING, HEARD, SPARE = 0, 1, 40, 41
LANGUAGES = ("en", "de", "ja")

Floats: TypeAlias = NDArray[np.float32]


def build_tiny_whisper(folder: Path, *, multilingual: bool = False) -> Path:
    """Write the model into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = [tokenizer.id_to_token(each) for each in range(tokenizer.get_vocab_size())]
    if multilingual:
        # CTranslate2 takes a model as multilingual if its vocabulary holds the empty token.
        tokens[0] = ""
    spec = _build_spec(tokenizer, len(tokens))
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = []
    spec.config.lang_ids = [tokenizer.token_to_id(f"<|{each}|>") for each in LANGUAGES]
    spec.config.alignment_heads = [[0, 0]]
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": MELS}))
    return folder


def _build_tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *(f"Ġ{word}" for word in SENTENCE.split())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    times = (f"{index * 0.02:.2f}" for index in range(1501))
    marks = ("endoftext", "startoftranscript", *LANGUAGES, *tasks, *times)
    tokenizer.add_special_tokens([AddedToken(f"<|{mark}|>", special=True, normalized=False) for mark in marks])
    return tokenizer


def _build_spec(tokenizer: Tokenizer, n_tokens: int) -> Any:
    spec = WhisperSpec(1, 1, 1, 1)
    _fill_encoder(spec.encoder)
    _fill_decoder(spec.decoder)
    spec.decoder.embeddings.weight, spec.decoder.projection.weight = _chain_words(tokenizer, n_tokens)
    return spec


def _fill_encoder(encoder: Any) -> None:
    encoder.conv1.weight = zeros(WIDTH, MELS, 3)
    encoder.conv1.weight[SOUND, :, 1] = 4 / MELS
    encoder.conv1.bias = zeros(WIDTH)
    encoder.conv1.bias[PADDING] = 1
    encoder.conv2.weight = zeros(WIDTH, WIDTH, 3)
    encoder.conv2.weight[SOUND, SOUND, 1] = 4
    encoder.conv2.weight[PADDING, PADDING, 1] = 1
    encoder.conv2.bias = zeros(WIDTH)
    encoder.position_encodings.encodings = zeros(1500, WIDTH)
    _fill_norm(encoder.layer_norm)
    # One axis of 64 alone has 8 standard deviations: the norm makes 8 of it, which is brought to 1 here.
    encoder.layer_norm.gamma[:] = 1 / 8
    # And it moves the other axes below zero, by a 64th of that.
    encoder.layer_norm.beta[SOUND] = 1 / WIDTH
    _fill_layer(encoder.layer[0])


def _fill_decoder(decoder: Any) -> None:
    decoder.position_encodings.encodings = zeros(448, WIDTH)
    _fill_norm(decoder.layer_norm)
    layer = decoder.layer[0]
    _fill_layer(layer)
    attention = layer.attention
    _fill_norm(attention.layer_norm)
    for linear, n_outputs in (
        (attention.linear[0], WIDTH),
        (attention.linear[1], 2 * WIDTH),
        (attention.linear[2], WIDTH),
    ):
        linear.weight = zeros(n_outputs, WIDTH)
        linear.bias = zeros(n_outputs)
    # Query and key are zero: all frames count the same. 1,500 frames are 30 s; the axis shows seconds.
    attention.linear[1].weight[WIDTH + HEARD, SOUND] = 30
    attention.linear[2].weight[HEARD, HEARD] = 1


def _chain_words(tokenizer: Tokenizer, n_tokens: int) -> tuple[Floats, Floats]:
    """Return embeddings and projection: each token lights an axis, and each axis calls the next word."""
    words = [tokenizer.token_to_id(f"Ġ{word}") for word in SENTENCE.split()]
    end = tokenizer.token_to_id("<|endoftext|>")
    embeddings, projection = zeros(n_tokens, WIDTH), zeros(n_tokens, WIDTH)
    first_axis = PADDING + 1
    embeddings[end:, first_axis] = 8
    for index, word in enumerate(words):
        embeddings[word, first_axis + index + 1] = 8
        projection[word, first_axis + index] = 10
        needs_s = SECONDS_PER_WORD * (index + 1) - 0.1
        projection[end, first_axis + index] = 10 + needs_s / 8
    projection[end, first_axis + len(words)] = 20
    projection[end, HEARD] = -1
    # The norm takes the mean off every axis; rows of one sum lose the same by it.
    projection[end, SPARE] = 10 - projection[end].sum()
    return embeddings, projection


def _fill_layer(layer: Any) -> None:
    """Let the layer do nothing: all its sums are zero."""
    _fill_norm(layer.self_attention.layer_norm)
    _fill_norm(layer.ffn.layer_norm)
    shapes = (
        (layer.self_attention.linear[0], 3),
        (layer.self_attention.linear[1], 1),
        (layer.ffn.linear_0, 1),
        (layer.ffn.linear_1, 1),
    )
    for linear, times in shapes:
        linear.weight = zeros(times * WIDTH, WIDTH)
        linear.bias = zeros(times * WIDTH)


def _fill_norm(norm: Any) -> None:
    norm.gamma = zeros(WIDTH) + 1
    norm.beta = zeros(WIDTH)


def zeros(*shape: int) -> Floats:
    """Return float32 zeros."""
    return np.zeros(shape, dtype=np.float32)
