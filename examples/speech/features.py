"""The embedding: log-mel statistics and the modulation spectrum of the audio, and of nothing else.

The rate of syllables and phones shows as energy in the mel bands rising and falling a few times a second, so the spectrum of
those movements (the modulation spectrum) carries the speech rate. Steps, for trimmed audio (T,) at 22 050 Hz:

1. log-mel energies in dB, 36 bands, 25 ms Hann frames every 10 ms, floored 50 dB below the loudest: (frames, 36)
2. averaged to 9 broad bands, plus their mean and the spectral flux as two more tracks: (frames, 11)
3. Welch: Hann windows of exactly 64 frames (0.64 s), half overlapping, mean power per modulation frequency: (11, bins)
4. log of the power of each pool of bins, then the level statistics of each track.

No length can leak: every window has the same length, averages do not depend on how many windows there are, and nothing is
padded with silence. Audio shorter than one window is continued by its own mirror image, which keeps its statistics.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal
from synthesis import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

FRAME, HOP, FFT_SIZE = 552, 220, 1024  # samples: 25 ms, 10 ms
MEL_BANDS, TRACK_BANDS = 36, 9
WINDOW, WINDOW_HOP = 64, 32  # frames: 0.64 s, half overlapping
FLOOR_DB = 50.0


def _mel_filters() -> DoubleArray:
    """Triangular filters, 60 to 8 000 Hz: (bins, 36)."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (60.0, 8000.0))
    edges = 700 * (10 ** (np.linspace(low, high, MEL_BANDS + 2) / 2595) - 1)  # (38,) Hz
    hz = scipy.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE_HZ)[:, None]  # (bins, 1)
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


MEL_FILTERS = _mel_filters()
FRAME_WINDOW = scipy.signal.get_window("hann", FRAME)
WELCH_WINDOW = scipy.signal.get_window("hann", WINDOW)


def log_mel(samples: FloatArray) -> DoubleArray:
    """(T,) -> (frames, 36) in dB relative to the loudest, so in [-50, 0]: the level of the recording does not matter."""
    samples = np.pad(samples, (0, max(0, FRAME - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]  # (frames, FRAME)
    power = np.abs(scipy.fft.rfft(frames * FRAME_WINDOW, FFT_SIZE, axis=1)) ** 2  # (frames, bins)
    mel = power @ MEL_FILTERS  # (frames, 36)
    db = 10 * np.log10(np.maximum(mel, 1e-12))
    return np.maximum(db - db.max(), -FLOOR_DB)


def _tracks(mel: DoubleArray) -> DoubleArray:
    """(frames, 36) -> (frames, 11): nine broad bands, the mean of all, and how fast the spectrum changes."""
    bands = mel.reshape(len(mel), TRACK_BANDS, -1).mean(axis=2)
    flux = np.abs(np.diff(mel, axis=0, prepend=mel[:1])).mean(axis=1, keepdims=True)
    return np.concatenate([bands, mel.mean(axis=1, keepdims=True), flux], axis=1)


def _welch(tracks: DoubleArray) -> DoubleArray:
    """(frames, tracks) -> (tracks, 33): mean modulation power over windows of 64 frames spread evenly from end to end."""
    if len(tracks) < WINDOW:
        tracks = np.pad(tracks, ((0, WINDOW - len(tracks)), (0, 0)), mode="symmetric")
    count = 1 + -(-(len(tracks) - WINDOW) // WINDOW_HOP)
    starts = np.linspace(0, len(tracks) - WINDOW, count).round().astype(int)
    windows = tracks[starts[:, None] + np.arange(WINDOW)]  # (count, 64, tracks)
    windows = (windows - windows.mean(axis=1, keepdims=True)) * WELCH_WINDOW[:, None]
    power = np.abs(scipy.fft.rfft(windows, axis=1)) ** 2  # (count, 33, tracks)
    return power.mean(axis=0).T


def embed(samples: FloatArray) -> FloatArray:
    """Trimmed audio (T,) -> embedding (D,) float32, not yet standardised."""
    mel = log_mel(samples)
    tracks = _tracks(mel)
    power = _welch(tracks)  # (11, 33)
    modulation = np.log(power[:, 1:17] + 1.0)  # (11, 16): 1.6 to 25 Hz
    levels = np.concatenate([tracks.mean(axis=0), tracks.std(axis=0)])  # (22,)
    return np.concatenate([modulation.ravel(), levels]).astype(np.float32)
