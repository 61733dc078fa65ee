"""Make the bundled speech-rate data set: espeak-ng speaks public-domain sentences, the audio becomes embeddings and CPS.

Example:
    python examples/speech/make_dataset.py --out examples/speech/data

Needs espeak-ng, numpy, scipy and tqdm, and no network. The same versions give the same files, to the byte.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from features import FloatArray, embed
from synthesis import SAMPLE_RATE_HZ, SynthesisError, espeak_version, synthesise, trim_silence
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SEED = "cpstream speech 1"
UTTERANCES_PER_VOICE = 10
VOICES = {"train": 180, "dev": 30, "test": 30}
HELD_OUT_VARIANTS = 15  # in dev, and as many in test
SPEED_RANGE_WPM = (90, 380)
PITCH_RANGE = (20, 80)
STD_FLOOR = 0.05  # a dimension that hardly varies in train must not explode on an unseen voice

ACCENTS = ["en", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp", "en-us", "en-us-nyc"]
COLUMNS = ["audio_path", "cps", "characters", "seconds", "voice", "words_per_minute", "pitch", "work", "text"]
# Voice variants of espeak-ng 1.51. Left out: Demonic, fast, "Mr serious" (a space in its name), klatt and klatt6 (both the
# same audio as caleb). Members of a family are tunings of one voice: families are for train only, so that no held-out voice has
# a relation by name in train and no family fills dev or test.
FAMILIES = [
    ["Andy", "AnxiousAndy"],
    ["Gene", "Gene2"],
    ["Mario", "Michael"],
    ["RicishayMax", "RicishayMax2", "RicishayMax3"],
    ["anika", "anikaRobot"],
    ["caleb", "klatt2", "klatt3", "klatt4", "klatt5"],
    ["edward", "edward2"],
    ["iven", "iven2", "iven3", "iven4"],
    ["robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7", "robosoft8"],
    ["steph", "steph2", "steph3"],
    ["whisper", "whisperf"],
]
LONE_VARIANTS = """
    Alex Alicia Andrea Annie Denis Diogo Henrique Hugo Jacky Lee Marco Mike Nguyen Storm Tweaky UniRobot adam
    announcer antonio aunty belinda benjamin boris croak david ed f1 f2 f3 f4 f5 grandma grandpa gustave john
    kaukovalta linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel norbert pablo paul pedro quincy rob robert
    sandro shelby travis victor zac
"""


@dataclass(frozen=True)
class Utterance:
    """What is to be spoken, and by whom."""

    split: str
    file_path: str
    voice: str
    words_per_minute: int
    pitch: int
    work: str
    text: str


@dataclass(frozen=True)
class Sample:
    """What came of it: the embedding (D,) float32 and the length of the trimmed audio in seconds."""

    utterance: Utterance
    embedding: FloatArray
    seconds: float

    @property
    def cps(self) -> float:
        """Characters (every one of the sentence, spaces and punctuation included) a second of trimmed audio."""
        return len(self.utterance.text) / self.seconds


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """(work, sentence) of every line that is not a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(work, text) for work, _, text in (line.partition("\t") for line in lines if not line.startswith("#"))]


def plan_voices() -> dict[str, list[str]]:
    """The voices of every split: first its variants, then each of them in as many accents as the split needs."""
    rng = random.Random(f"{SEED} voices")
    lone = rng.sample(LONE_VARIANTS.split(), len(LONE_VARIANTS.split()))
    families = [variant for family in FAMILIES for variant in family]
    held_out = HELD_OUT_VARIANTS
    variants = {"train": lone[2 * held_out :] + families, "dev": lone[held_out : 2 * held_out], "test": lone[:held_out]}
    voices = {}
    for split, count in VOICES.items():
        accents = {variant: rng.sample(ACCENTS, len(ACCENTS)) for variant in variants[split]}
        rounds = (f"{accents[variant][i]}+{variant}" for i in range(len(ACCENTS)) for variant in variants[split])
        voices[split] = sorted(itertools.islice(rounds, count))
    return voices


def plan_utterances(sentences: list[tuple[str, str]]) -> list[Utterance]:
    """Deal sentences, speeds and pitches to the voices at random, so that none of them tells of another."""
    rng = random.Random(f"{SEED} utterances")
    deck = iter(rng.sample(sentences, len(sentences)))
    low, high = np.log(SPEED_RANGE_WPM)
    utterances = []
    for split, voices in plan_voices().items():
        for number, voice in enumerate((v for v in voices for _ in range(UTTERANCES_PER_VOICE)), start=1):
            work, text = next(deck)
            path = f"audio/{split}/{voice}/{number:04d}.wav"
            # Uniform in log speed: as many utterances between 90 and 180 words a minute as between 180 and 360.
            speed = round(float(np.exp(rng.uniform(low, high))))
            utterances.append(Utterance(split, path, voice, speed, rng.randint(*PITCH_RANGE), work, text))
    return utterances


def check_disjoint(utterances: Iterable[Utterance]) -> None:
    """Assert that no sentence, no voice and no voice variant occurs in two splits, and no sentence twice."""
    splits: dict[str, tuple[set[str], set[str], set[str]]] = {}
    count = 0
    for u in utterances:
        texts, voices, variants = splits.setdefault(u.split, (set(), set(), set()))
        texts.add(u.text)
        voices.add(u.voice)
        variants.add(u.voice.partition("+")[2])
        count += 1
    for a, b in itertools.combinations(splits, 2):
        for kind, left, right in zip(("sentences", "voices", "variants"), splits[a], splits[b], strict=True):
            assert not left & right, f"{kind} in both {a} and {b}: {sorted(left & right)}"
    assert sum(len(texts) for texts, _, _ in splits.values()) == count, "a sentence occurs twice"


def make_sample(utterance: Utterance) -> Sample:
    """Speak, trim, measure, embed. The audio itself is not kept."""
    u = utterance
    audio = trim_silence(synthesise(u.text, u.voice, u.words_per_minute, u.pitch))
    return Sample(u, embed(audio), len(audio) / SAMPLE_RATE_HZ)


def standardise(samples: list[Sample]) -> FloatArray:
    """(N, D) float32: every dimension less its mean over train, divided by its floored standard deviation over train."""
    raw = np.stack([s.embedding for s in samples]).astype(np.float64)
    train = raw[[s.utterance.split == "train" for s in samples]]
    scaled = (raw - train.mean(axis=0)) / np.maximum(train.std(axis=0), STD_FLOOR)
    return scaled.round(4).astype(np.float32)


def write(samples: list[Sample], out: Path) -> None:
    """Write `numpy_embs.npy` and one `{split}_cps.csv` a split; the CSV rows are in another order than the npy's."""
    out.mkdir(parents=True, exist_ok=True)
    embeddings = standardise(samples)
    table: dict[str, list[dict[str, object]]] = {split: [] for split in VOICES}
    for sample, embedding in zip(samples, embeddings, strict=True):
        table[sample.utterance.split].append({"embedding": embedding, "file_path": sample.utterance.file_path})
    np.save(out / "numpy_embs.npy", np.array(table, dtype=object), allow_pickle=True)
    for split in VOICES:
        rows = [s for s in samples if s.utterance.split == split]
        random.Random(f"{SEED} {split} rows").shuffle(rows)
        with (out / f"{split}_cps.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for s in rows:
                u = s.utterance
                figures = (f"{s.cps:.4f}", len(u.text), f"{s.seconds:.4f}")
                writer.writerow([u.file_path, *figures, u.voice, u.words_per_minute, u.pitch, u.work, u.text])


def main() -> int:
    """The command line; 1 and one line on stderr when espeak-ng is missing or fails."""
    description, _, example = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, epilog=example, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=HERE / "data", help="folder to write (default: data/ beside this script)")
    parser.add_argument("--sentences", type=Path, default=HERE / "sentences.txt", help="lines of work, tab, sentence")
    parser.add_argument("--jobs", type=int, default=2, help="utterances made at once (default: 2)")
    args = parser.parse_args()
    utterances = plan_utterances(read_sentences(args.sentences))
    check_disjoint(utterances)
    try:
        print(f"{espeak_version()}, {len(utterances)} utterances")
        with ThreadPoolExecutor(args.jobs) as pool:  # the work is done in espeak-ng and in numpy: threads are enough
            samples = list(tqdm(pool.map(make_sample, utterances), total=len(utterances), unit="utterance"))
    except SynthesisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write(samples, args.out)
    print(f"wrote {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.2f} MB to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
