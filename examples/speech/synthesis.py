"""Speech from text by espeak-ng, and the removal of the silence around it."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d

FloatArray = npt.NDArray[np.float32]

SAMPLE_RATE_HZ = 22_050  # what espeak-ng writes for all of its own (non-MBROLA) voices
SILENCE_WINDOW_S = 0.010
SILENCE_DB = -40.0  # relative to the loudest window of the utterance
INSTALL_HINT = "espeak-ng is not on the PATH; install it: apt-get install espeak-ng (Debian, Ubuntu), brew install espeak-ng"


class SynthesisError(RuntimeError):
    """espeak-ng is missing, refused the request, or produced no audible speech."""


def espeak_version() -> str:
    """The first line of `espeak-ng --version` without the local data path. Raises SynthesisError when it is missing."""
    if shutil.which("espeak-ng") is None:
        raise SynthesisError(INSTALL_HINT)
    reply = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True)
    return reply.stdout.split("Data at:")[0].strip()


def synthesise(text: str, voice: str, words_per_minute: int, pitch: int) -> FloatArray:
    """Speak `text`: (T,) float32 in [-1, 1] at 22 050 Hz, silence around it included.

    `voice` is an espeak-ng voice and variant such as `en-us+f3`; `pitch` runs from 0 to 99. Raises SynthesisError.
    """
    command = [
        "espeak-ng",
        "-v",
        voice,
        "-s",
        str(words_per_minute),
        "-p",
        str(pitch),
        "-b",
        "1",
        "--stdin",
        "--stdout",
    ]
    reply = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if reply.returncode != 0 or reply.stderr:
        raise SynthesisError(f"espeak-ng failed for voice {voice!r}: {reply.stderr.decode(errors='replace').strip()}")
    with wave.open(io.BytesIO(reply.stdout)) as reader:
        if (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) != (SAMPLE_RATE_HZ, 1, 2):
            raise SynthesisError(f"voice {voice!r} is not {SAMPLE_RATE_HZ} Hz, mono, 16 bit")
        # The length in the header of a WAV written to a pipe is a placeholder: read until the end instead of trusting it.
        pcm = np.frombuffer(reader.readframes(2**30), dtype="<i2")
    return (pcm / 32_768).astype(np.float32)


def trim_silence(samples: FloatArray) -> FloatArray:
    """Cut leading and trailing silence: (T,) -> (T',), T' <= T, to the sample.

    Silence is where the RMS of the 10 ms around a sample is more than 40 dB below the loudest 10 ms of the utterance.
    Pauses inside the utterance stay. Raises SynthesisError when nothing is audible.
    """
    width = round(SILENCE_WINDOW_S * SAMPLE_RATE_HZ)
    power = uniform_filter1d(samples.astype(np.float64) ** 2, width, mode="constant")  # (T,)
    loudest = float(power.max(initial=0.0))
    if loudest < 1e-8:
        raise SynthesisError("espeak-ng produced no audible speech")
    audible = np.flatnonzero(power > loudest * 10 ** (SILENCE_DB / 10))
    return samples[audible[0] : audible[-1] + 1]
