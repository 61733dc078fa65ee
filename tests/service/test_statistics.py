"""Every figure is that of numpy, scipy or scikit-learn on the same data, and what cannot be had is said in words."""

from pathlib import Path

import numpy as np
import pytest
from arrays import Arrays, snapshot_of
from scipy.stats import ks_2samp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.metrics.pairwise import cosine_similarity

from cpstream_service.snapshot.store import Snapshot
from cpstream_service.statistics import alike, projection, reading
from cpstream_service.statistics.compute import Figures, compute
from cpstream_service.statistics.distributions import distribution
from cpstream_service.statistics.roles import cast

D = 24


def arrays(count: int, seed: int, scale: float = 1.0) -> Arrays:
    """Embeddings far from the origin that carry the rate in part, and the rates."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((count, 6))
    basis = np.random.default_rng(99).standard_normal((6, D))
    embeddings = scale * (hidden @ basis + 0.3 * rng.standard_normal((count, D)) + 20)
    return embeddings.astype(np.float32), np.clip(14 + 3 * hidden[:, 0] + rng.standard_normal(count), 0.2, None).astype(np.float32)


def figures(snapshot: Snapshot, *roles: str) -> dict[str, Figures]:
    return compute(snapshot, roles, lambda _: None)


@pytest.fixture(scope="module")
def data() -> dict[str, Arrays]:
    found = {"train": arrays(900, 1), "validation": arrays(300, 2), "test": arrays(211, 3, scale=1.1)}
    train, validation, test = (found[name][0] for name in ("train", "validation", "test"))
    validation[:, 5] = 7.25  # constant
    validation[:, 6] = 3 + 1e-5 * np.random.default_rng(0).standard_normal(300)  # nearly so
    train[17] = train[400] = train[3]
    train[30] = 0
    test[8] = train[50]
    test[9] = train[60] * 1.0004 + 1e-5  # the same recording, encoded anew
    return found


@pytest.fixture(scope="module")
def made(data: dict[str, Arrays], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figures]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "PIECE_BYTES", 4 * D * 128)  # several pieces, the last one short
        return figures(snapshot_of(tmp_path_factory.mktemp("statistics") / "snapshots", data))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_rates_are_numpys(made: dict[str, Figures], data: dict[str, Arrays], name: str) -> None:
    cps, found = data[name][1].astype(np.float64), made[name].statistics.cps
    assert (found.count, found.min, found.max) == (len(cps), cps.min(), cps.max())
    assert (found.mean, found.std) == pytest.approx((cps.mean(), cps.std()))
    assert found.quartiles == pytest.approx(np.quantile(cps, [0.25, 0.5, 0.75]))
    counts, edges = np.histogram(cps, bins="fd")
    assert (found.histogram.rule, list(found.histogram.counts)) == ("freedman-diaconis", counts.tolist())
    assert found.histogram.edges == pytest.approx(edges)
    assert found.num_unusual == ((cps < 1) | (cps > 60)).sum()
    assert found.unusual_share == found.num_unusual / len(cps)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_embeddings_are_numpys_and_scikit_learns(made: dict[str, Figures], data: dict[str, Arrays], name: str) -> None:
    rows, found = data[name][0].astype(np.float64), made[name].statistics.embeddings
    norms = np.linalg.norm(rows, axis=1)
    assert (found.norms.mean, found.norms.min, found.norms.max) == pytest.approx((norms.mean(), norms.min(), norms.max()))
    kept = rows[norms > 0]
    cosines = cosine_similarity(kept)
    assert found.mean_cosine == pytest.approx(cosines[~np.eye(len(kept), dtype=bool)].mean(), rel=1e-9)
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    shares = values[values > values[0] * 1e-7] / values.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert found.participation_ratio == pytest.approx((values**2).sum() ** 2 / (values**4).sum())
    assert found.constant.examples == ((5,) if name == "validation" else ())
    assert found.near_constant.examples == ((6,) if name == "validation" else ())
    assert (found.constant.count, found.near_constant.count) == (len(found.constant.examples), len(found.near_constant.examples))
    assert found.duplicates.count == len(rows) - len(np.unique(data[name][0], axis=0))


def test_which_samples_are_zero_or_equal(made: dict[str, Figures]) -> None:
    found = made["train"].statistics.embeddings
    assert (found.num_zero, found.zero_examples) == (1, ("train/000030.wav",))
    pairs = [(pair.file_path, pair.other) for pair in found.duplicates.examples]
    assert pairs == [("train/000017.wav", "train/000003.wav"), ("train/000400.wav", "train/000003.wav")]


def test_what_splits_share(made: dict[str, Figures]) -> None:
    of_test = {shared.split: shared for shared in made["test"].statistics.shared}
    of_train = {shared.split: shared for shared in made["train"].statistics.shared}
    assert list(of_test) == ["train", "validation"]
    same = of_test["train"].same_vector
    assert [(pair.file_path, pair.other) for pair in same.examples] == [("test/000008.wav", "train/000050.wav")]
    for near, expected in [
        (of_test["train"].near_duplicates, [("test/000008.wav", "train/000050.wav"), ("test/000009.wav", "train/000060.wav")]),
        (of_train["test"].near_duplicates, [("train/000050.wav", "test/000008.wav"), ("train/000060.wav", "test/000009.wav")]),
    ]:
        assert near is not None
        assert near.count == 2
        assert [(pair.file_path, pair.other) for pair in near.examples] == expected
        assert all(pair.cosine is not None and 0.999 <= pair.cosine <= 1 for pair in near.examples)
    assert of_test["validation"].near_duplicates is not None
    assert of_test["validation"].near_duplicates.count == of_test["validation"].same_vector.count == 0


@pytest.mark.parametrize("dimension", [3, 40, 200])
def test_near_duplicates_against_all_pairs(tmp_path: Path, dimension: int) -> None:
    """At cosines about the threshold; the rows of 3 dimensions are so dense that most have a like."""
    rng = np.random.default_rng(dimension)
    left = rng.standard_normal((700, dimension)) + 5
    noise = rng.standard_normal((700, dimension)) * rng.uniform(0, 0.1, (700, 1))
    right = np.concatenate([left[:500] + noise[:500], rng.standard_normal((300, dimension)) + 5])
    cps = rng.uniform(5, 20, 800)
    found = figures(snapshot_of(tmp_path / "s", {"a": (left, cps[:700]), "b": (right, cps)}))
    a, b = left.astype(np.float32).astype(np.float64), right.astype(np.float32).astype(np.float64)
    mean = np.concatenate([a, b]).mean(axis=0)
    near = cosine_similarity(a - mean, b - mean) >= alike.NEAR_COSINE
    counted = [found[name].statistics.shared[0].near_duplicates for name in "ab"]
    counts = [each.count if each else -1 for each in counted]
    assert counts == [near.any(axis=1).sum(), near.any(axis=0).sum()]
    assert min(counts) > 100


def test_near_duplicates_among_many_alike(tmp_path: Path) -> None:
    """Few speakers: thousands of candidates agree in each band, and the likest of them are compared first."""
    rng = np.random.default_rng(6)
    speakers = 5 * rng.standard_normal((4, 64))
    left, right = (speakers[rng.integers(0, 4, count)] + 0.6 * rng.standard_normal((count, 64)) for count in (8000, 2000))
    right[:300] = left[1000:1300] + 0.05 * rng.standard_normal((300, 64))
    arrays = {"a": (left, rng.uniform(5, 20, 8000)), "b": (right, rng.uniform(5, 20, 2000))}
    found = figures(snapshot_of(tmp_path / "s", arrays))["b"].statistics
    assert found.shared[0].near_duplicates is not None
    assert 290 <= found.shared[0].near_duplicates.count <= 300
    assert found.shared[0].near_duplicates.examples[0].other == "a/001000.wav"
    assert any(note.startswith("near-duplicates in a are at least so many") for note in found.notes)


def test_shift_is_scipys_and_numpys(made: dict[str, Figures], data: dict[str, Arrays]) -> None:
    for shift in made["test"].statistics.shift:
        (ours, cps), (theirs, other) = data["test"], data[shift.split]
        ours, theirs, cps, other = (values.astype(np.float64) for values in (ours, theirs, cps, other))
        assert shift.cps_difference == pytest.approx(cps.mean() - other.mean())
        assert shift.cps_effect == pytest.approx((cps.mean() - other.mean()) / np.sqrt((cps.var() + other.var()) / 2))
        assert shift.cps_ks == pytest.approx(ks_2samp(cps, other).statistic)
        distance = np.linalg.norm(ours.mean(axis=0) - theirs.mean(axis=0))
        totals = ours.var(axis=0).sum(), theirs.var(axis=0).sum()
        assert shift.embedding_distance == pytest.approx(distance)
        assert shift.embedding_effect == pytest.approx(distance / np.sqrt(sum(totals) / 2))
        by_chance = np.sqrt(totals[0] / len(cps) + totals[1] / len(other)) / np.sqrt(sum(totals) / 2)
        assert shift.embedding_by_chance == pytest.approx(by_chance)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_the_baseline_is_scikit_learns(made: dict[str, Figures], data: dict[str, Arrays], name: str) -> None:
    found = made[name].statistics.baseline
    assert found is not None
    assert (found.fitted_on, found.chosen_on) == ("train", "validation")
    train, dev, (rows, cps) = ([part.astype(np.float64) for part in data[each]] for each in ("train", "validation", name))
    rmse = []
    for tried in found.alphas:
        predicted = Ridge(alpha=tried.alpha, solver="svd").fit(*train).predict(dev[0])
        rmse.append(np.sqrt(np.mean((predicted - dev[1]) ** 2)))
        assert (tried.rmse, tried.mae) == pytest.approx((rmse[-1], mean_absolute_error(dev[1], predicted)), rel=1e-6)
    assert found.alpha == found.alphas[int(np.argmin(rmse))].alpha
    predicted = Ridge(alpha=found.alpha, solver="svd").fit(*train).predict(rows)
    assert found.ridge.r2 == pytest.approx(r2_score(cps, predicted), rel=1e-6)
    assert found.ridge.mae == pytest.approx(mean_absolute_error(cps, predicted), rel=1e-6)
    constant = np.full(len(cps), train[1].mean())
    assert (found.mean.r2, found.mean.mae) == pytest.approx((r2_score(cps, constant), mean_absolute_error(cps, constant)))
    order = np.argsort(cps)
    assert sum(decile.count for decile in found.deciles) == len(cps)
    low, high = found.deciles[0], found.deciles[-1]
    first, last = order[: low.count], order[-high.count :]
    assert len(found.deciles) == 10
    assert low.mae == pytest.approx(np.abs(predicted - cps)[first].mean(), rel=1e-6)
    assert high.bias == pytest.approx((predicted - cps)[last].mean(), rel=1e-6)
    assert low.bias > 0 > high.bias  # a regression draws to the mean


@pytest.mark.parametrize("most", [100, 10_000])
def test_the_projection_is_scikit_learns(
    data: dict[str, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(projection, "MAX_POINTS", most)
    found = figures(snapshot_of(tmp_path / "s", data))["train"].projection
    indices = [point.index for point in found.points]
    assert indices == sorted(set(indices))
    assert len(indices) == min(most, 900)
    rows = data["train"][0][indices].astype(np.float64)
    oracle = PCA(2, svd_solver="full").fit(rows)
    assert [[point.x, point.y] for point in found.points] == pytest.approx(oracle.transform(rows), abs=1e-6)
    assert found.explained_variance_ratio == pytest.approx(oracle.explained_variance_ratio_)
    assert found.points[1].file_path == f"train/{indices[1]:06d}.wav"
    assert found.points[1].cps == pytest.approx(data["train"][1][indices[1]])


def test_a_projection_of_more_dimensions_than_samples(tmp_path: Path) -> None:
    rows = np.random.default_rng(4).standard_normal((20, 300))
    found = figures(snapshot_of(tmp_path / "s", {"all": (rows, np.arange(5, 25))}))["all"].projection
    rows = rows.astype(np.float32).astype(np.float64)
    assert [[point.x, point.y] for point in found.points] == pytest.approx(PCA(2).fit_transform(rows), abs=1e-6)


# What cannot be had


def strict_json(found: Figures) -> str:
    """The body as JSON; pydantic refuses NaN and infinity when it is made, JSON's reader when it is read."""
    text = found.model_dump_json()
    assert Figures.model_validate_json(text) == found
    return text


ONE = (np.ones((1, 4)), np.full(1, 12.0))
SAME = (np.ones((50, 4)), np.random.default_rng(0).uniform(5, 20, 50))
STILL = (np.random.default_rng(1).standard_normal((50, 4)), np.full(50, 12.0))
USUAL = (np.random.default_rng(2).standard_normal((60, 4)), np.random.default_rng(3).uniform(5, 20, 60))


@pytest.mark.parametrize(
    ("splits", "name", "words"),
    [
        ({"train": USUAL, "dev": USUAL, "test": ONE}, "test", ["no R2: all samples have the same rate", "no mean cosine"]),
        ({"train": ONE, "dev": USUAL}, "dev", ["no baseline: train has one sample"]),
        ({"train": USUAL, "dev": ONE}, "dev", ["no effective rank: all embeddings are the same"]),
        ({"train": SAME, "dev": SAME}, "train", ["no effective rank: all embeddings are the same"]),
        ({"train": STILL, "dev": STILL}, "train", ["no R2: all samples have the same rate"]),
        ({"train": (np.zeros((3, 4)), np.arange(3) + 5), "dev": USUAL}, "train", ["no mean cosine"]),
        ({"all": USUAL}, "all", ["no split is called train or training; name it with --roles train=SPLIT"]),
        ({"train": USUAL, "test": USUAL}, "test", ["no split is called dev, development, validation, valid or val"]),
        ({"train": USUAL, "dev": USUAL, "Valid": USUAL}, "dev", ["several splits could be the dev split (dev, Valid)"]),
        ({"train": USUAL, "dev": (np.ones((3, 5)), np.arange(3) + 5)}, "train", ["train has 4 dimensions and dev 5"]),
    ],
)
def test_what_cannot_be_had_is_said(tmp_path: Path, splits: dict[str, Arrays], name: str, words: list[str]) -> None:
    made = figures(snapshot_of(tmp_path / "s", splits))
    for found in made.values():
        strict_json(found)
    notes = "\n".join(made[name].statistics.notes)
    assert all(word in notes for word in words), notes


def test_a_split_of_equal_rates_and_embeddings(tmp_path: Path) -> None:
    made = figures(snapshot_of(tmp_path / "s", {"train": USUAL, "dev": USUAL, "test": (np.ones((50, 4)), np.full(50, 12.0))}))
    found = made["test"].statistics
    assert found.cps.histogram.edges == (11.5, 12.5)
    assert found.cps.histogram.counts == (50,)
    assert found.embeddings.duplicates.count == 49
    assert found.embeddings.constant.count == 4
    assert found.baseline is not None
    assert [decile.count for decile in found.baseline.deciles] == [50]
    assert made["test"].projection.explained_variance_ratio is None
    assert {(point.x, point.y) for point in made["test"].projection.points} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ([1.0] * 60 + [5.0], "sturges"),
        ([*np.linspace(0, 1, 5000).tolist(), 1e30], "equal-200"),
        ([1e30, 1.0000001e30], "freedman-diaconis"),
    ],
)
def test_histograms_of_odd_values(values: list[float], rule: str) -> None:
    found = distribution(np.array(values, np.float32)).histogram
    assert sum(found.counts) == len(values)
    assert len(found.edges) == len(found.counts) + 1 <= 201
    assert found.rule == rule
    assert all(low < high for low, high in zip(found.edges, found.edges[1:], strict=False))


def test_large_and_small_numbers(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).standard_normal((40, 4)).astype(np.float32)
    for scale in (1e30, 1e-30):
        made = figures(snapshot_of(tmp_path / str(scale), {"train": (rows * np.float32(scale), USUAL[1][:40]), "dev": ONE}))
        found = made["train"].statistics
        strict_json(made["train"])
        assert found.embeddings.num_zero == 0
        assert found.embeddings.mean_cosine == pytest.approx(
            figures(snapshot_of(tmp_path / f"{scale}-plain", {"a": (rows, USUAL[1][:40])}))["a"].statistics.embeddings.mean_cosine
        )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ("train", None, "test")),
        (("dev=odd",), ("train", "odd", "test")),
        (("train=odd", "dev=none"), ("odd", None, "test")),
    ],
)
def test_roles(given: tuple[str, ...], expected: tuple[str | None, ...]) -> None:
    found = cast(["train", "odd", "test"], given)
    assert (found.roles.train, found.roles.dev, found.roles.test) == expected
    assert ("dev" in found.missing) == (expected[1] is None)
