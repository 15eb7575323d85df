"""Keywords without recordings: words of two gliding tones, spoken at random pitch, speed, loudness and noise.

A word is two syllables; each is a tone with an overtone that rises, falls or stays, so that neither the mean spectrum
nor one moment tells words apart. What networks see is the log spectrogram, time downwards, frequency to the right, as
a grey picture of bytes. It stands for a keyword data set where none can be fetched, and is far easier than speech.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from redistill.internal.seeding import generator

WORDS = ("up up", "up down", "down up", "down down", "level up", "level down", "up level", "down level")
_GLIDES = {"up": 1.0, "down": -1.0, "level": 0.0}
RATE = 4000
"""Samples a second; a word is one second."""
FRAMES, BANDS = 32, 32
_WINDOW = 256
_FLOOR, _CEILING = -4.0, 4.0
"""Natural logarithms of magnitude that black and white stand for."""


def words(part: str, each: int) -> tuple[Tensor, Tensor]:
    """Speak every word ``each`` times: spectrograms [N, 1, time, frequency] of bytes and labels [N].

    The same at each call; ``part`` (train, test) tells apart what is spoken.
    """
    labels = torch.arange(len(WORDS)).repeat(each)
    chance = generator("keywords", part)
    heard = torch.stack([_speak(WORDS[label], chance) for label in labels.tolist()])
    return spectrogram(heard), labels


def _speak(word: str, chance: torch.Generator) -> Tensor:
    """One second of sound, [RATE]."""
    pitch, speed, loudness, start = torch.rand(4, generator=chance).tolist()
    length = 0.28 + 0.1 * speed
    time = torch.arange(RATE) / RATE
    sound: Tensor = 0.15 * torch.randn(RATE, generator=chance)
    for index, glide in enumerate(word.split()):
        since = time - 0.05 - 0.1 * start - index * (length + 0.04)
        inside = (since >= 0) & (since < length)
        base = 350 + 350 * pitch
        phase = 2 * math.pi * (base * since + _GLIDES[glide] * 0.6 * base * since * (since / length - 1))
        envelope = torch.sin(math.pi * since / length).clamp(min=0) * (0.4 + loudness)
        sound = sound + torch.where(inside, envelope * (torch.sin(phase) + 0.4 * torch.sin(2 * phase)), 0.0)
    return sound


def spectrogram(sound: Tensor) -> Tensor:
    """Log magnitudes of sounds [N, RATE] as bytes [N, 1, FRAMES, BANDS]."""
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(sound, _WINDOW, RATE // FRAMES, window=window, return_complex=True).abs()  # [N, bins, frames]
    bands = spectrum[:, : 4 * BANDS, :FRAMES].reshape(len(sound), BANDS, 4, FRAMES).mean(2)
    level = (bands.clamp(min=1e-6).log() - _FLOOR) / (_CEILING - _FLOOR)
    pixels: Tensor = (level.clamp(0, 1) * 255).round().to(torch.uint8).transpose(1, 2)[:, None]
    return pixels
