"""What the figures mean: a sentence beside each.

They name splits as they are called: templates make that harmless.
"""

from collections.abc import Mapping

from cpstream_client.contract.figures import Baseline, Distribution, RateFigures, Shared, Shift, Statistics, VectorFigures

from ..align.align import MISSING_LABEL, UNUSUAL_CPS, USUAL_CPS, ZERO_EMBEDDING
from ..sources.rows import Reason
from .render import counted, number, percent

EFFECT = 0.5
"""From here on a difference of means counts as large, in standard deviations: "medium" by Cohen (1988)."""
CHANCE = 3.0
"""So many times what chance makes of the distance of two means."""
NARROW_SHARE = 0.05
"""Below this share of the dimensions the effective rank counts as small."""
ONE_WAY_COSINE = 0.8
"""From this mean cosine on all embeddings point the same way."""
CARRIES, HARDLY = 0.5, 0.05
"""R2 from which on the embedding carries the rate, and below which it hardly does."""

REASONS = {reason.code: reason.sentence for reason in Reason} | {
    UNUSUAL_CPS: f"The rate is outside the usual {USUAL_CPS[0]:g} to {USUAL_CPS[1]:g} characters a second.",
    ZERO_EMBEDDING: "The embedding holds nothing but zeros.",
    MISSING_LABEL: "A further label has no value.",
}
"""What alignment's codes mean."""


def of_rates(cps: RateFigures) -> str:
    if cps.count == 1:
        return f"The one recording has {number(cps.mean)} characters a second."
    if cps.min == cps.max:
        return f"All recordings have the same rate, {number(cps.mean)} characters a second: there is nothing to learn from it."
    low, _, high = cps.quartiles
    text = f"Half of the recordings have {number(low)} to {number(high)} characters a second; the mean is {number(cps.mean)}."
    if cps.num_unusual:
        usual = f"{USUAL_CPS[0]:g} to {USUAL_CPS[1]:g}"
        text += f" {number(cps.num_unusual)} ({percent(cps.unusual_share)}) lie outside the usual {usual}."
    return text


def of_norms(norms: Distribution) -> str:
    if norms.count == 1:
        return f"The one embedding has the length {number(norms.mean)}."
    if norms.std <= 1e-3 * abs(norms.mean):
        return f"All embeddings have about the same length, {number(norms.mean)}: it seems that they were normalised."
    return f"The lengths of the embeddings are {number(norms.mean)} on average, give or take {percent(norms.std / norms.mean)}."


def of_dimensions(vectors: VectorFigures) -> str:
    constant, near = vectors.constant.count, vectors.near_constant.count
    if vectors.norms.count == 1:
        return "There is one embedding: what varies cannot be said."
    if constant == vectors.dimension:
        return "All embeddings are the same: a model can tell no recording from another."
    if not constant and not near:
        return f"All {vectors.dimension} dimensions vary."
    parts = [f"{number(constant)} never vary"] * bool(constant) + [f"{number(near)} hardly vary"] * bool(near)
    return f"Of {vectors.dimension} dimensions {' and '.join(parts)}: they tell a model nothing."


def of_rank(vectors: VectorFigures) -> str:
    rank, dimension = vectors.effective_rank, vectors.dimension
    if rank is None:
        return "How many directions the embeddings fill cannot be said: they do not vary."
    text = f"The embeddings fill about {number(rank)} of {dimension} directions."
    return f"{text} That is few: most of the numbers repeat what others say." if is_narrow(vectors) else text


def of_cosine(vectors: VectorFigures) -> str:
    cosine = vectors.mean_cosine
    if cosine is None:
        return "There are no two embeddings to compare."
    text = f"Two embeddings have a cosine of {number(cosine, 2)} on average"
    if cosine >= ONE_WAY_COSINE:
        return f"{text}: they all point nearly the same way, so take their mean off before comparing them."
    return f"{text}: they point in different directions."


def of_duplicates(vectors: VectorFigures) -> str:
    count = vectors.duplicates.count
    zero = (
        f" {counted(vectors.num_zero, 'embedding')} {'is' if vectors.num_zero == 1 else 'are'} all zero."
        if vectors.num_zero
        else ""
    )
    if not count:
        return f"No two embeddings are equal.{zero}"
    return f"{counted(count, 'recording')} {has(count)} exactly the embedding of an earlier one.{zero}"


def shares(shared: Shared) -> bool:
    near = 0 if shared.near_duplicates is None else shared.near_duplicates.count
    return bool(shared.same_file.count or shared.same_vector.count or near)


def of_shared(name: str, shared: Shared) -> str:
    """What a split shares with another one."""
    file, vector = shared.same_file.count, shared.same_vector.count
    near = None if shared.near_duplicates is None else shared.near_duplicates.count
    if not shares(shared):
        looked = "" if near is not None else " (near-duplicates were not looked for)"
        return f"No file and no embedding of {name} was found in {shared.split}{looked}."
    parts = [f"{counted(file, 'file')}", f"{counted(vector, 'embedding')} to the bit"]
    parts += [] if near is None else [f"{number(near)} nearly"]
    return f"Of {name}, {shared.split} holds {', '.join(parts)}: what is measured on one after training on the other is too good."


def of_baseline(name: str, baseline: Baseline) -> str:
    ridge, mean = baseline.ridge, baseline.mean
    by = f"{number(ridge.mae)} characters a second on average; the mean of {baseline.fitted_on} by {number(mean.mae)}"
    text = f"A linear model misses the rates of {name} by {by}."
    if name == baseline.fitted_on:
        return f"{text} It has seen these recordings: look at another split to judge it."
    if ridge.r2 is None:
        return text
    return f"{text} {_carries(ridge.r2)}"


def _carries(r2: float) -> str:
    if r2 >= CARRIES:
        return "So the embedding carries the speech rate."
    if r2 >= HARDLY:
        return "So the embedding carries something of the speech rate."
    return "So the embedding carries the speech rate hardly, or in no linear way."


def verdict(statistics: Mapping[str, Statistics]) -> str:
    """Does the embedding carry the speech rate at all? In one sentence, from the development or the test split."""
    roles = next((figures.roles for figures in statistics.values()), None)
    for name in () if roles is None else (roles.dev, roles.test):
        baseline = None if name is None else statistics[name].baseline
        if baseline is not None and baseline.ridge.r2 is not None:
            carries = _carries(baseline.ridge.r2).removeprefix("So t").rstrip(".")
            return f"T{carries} (R2 {number(baseline.ridge.r2, 2)} on {name})."
    return ""


def shift_of_rates(name: str, shift: Shift) -> str:
    difference = shift.cps_difference
    if shift.cps_effect is None:
        return f"all rates of {name} and {shift.split} are the same"
    if abs(shift.cps_effect) < 0.1:
        return f"{name} is spoken about as fast as {shift.split}"
    faster = "faster" if difference > 0 else "slower"
    by = f"{number(abs(difference))} characters a second ({number(abs(shift.cps_effect), 1)} standard deviations)"
    return f"{name} is spoken {faster} than {shift.split}, by {by}"


def shift_of_embeddings(name: str, shift: Shift) -> str:
    effect, chance = shift.embedding_effect, shift.embedding_by_chance
    if effect is None or chance is None:
        return f"the embeddings of {name} and {shift.split} cannot be compared"
    if effect <= CHANCE * chance:
        return f"the mean embeddings of {name} and {shift.split} lie no farther apart than chance would have them"
    times = number(effect / chance, 1) if chance else "many"
    away = f"{number(effect, 2)} of the spread from that of {shift.split}"
    return f"the mean embedding of {name} lies {away}, {times} times what chance makes"


def has(count: int) -> str:
    return "has" if count == 1 else "have"


def in_sentence(sentence: str) -> str:
    """A sentence without its capital and its point, to stand behind a colon."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def is_narrow(vectors: VectorFigures) -> bool:
    return vectors.effective_rank is not None and vectors.effective_rank < NARROW_SHARE * vectors.dimension


def is_far(shift: Shift) -> bool:
    """Whether the mean embeddings lie farther apart than chance, and far."""
    effect, chance = shift.embedding_effect, shift.embedding_by_chance
    return effect is not None and chance is not None and effect >= EFFECT and effect > CHANCE * chance
