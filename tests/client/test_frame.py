"""Client.frame and Client.join: splits as pandas DataFrames, and predictions that come back to them."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import Server
from hypothesis import given, settings
from hypothesis import strategies as st

from cpstream_client import Client, UnmatchedError
from cpstream_client.frames import join


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url)


@pytest.fixture
def dev(client: Client) -> pd.DataFrame:
    return client.frame("dev")


def test_a_split_as_a_frame(client: Client, server: Server) -> None:
    split = server.snapshot.splits["dev"]
    frame = client.frame("dev")
    assert list(frame.columns) == ["file_path", "cps"]
    assert frame.index.name == "index"
    assert list(frame.index) == list(range(len(split.cps)))
    assert frame["cps"].dtype == np.float32
    np.testing.assert_array_equal(frame["cps"], split.cps)
    assert frame["file_path"].tolist() == split.file_paths.to_pylist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_are_an_array_in_each_cell(client: Client, server: Server, dtype: str) -> None:
    split = server.snapshot.splits["train"]
    frame = client.frame("train", ("embedding", "index", "cps"), dtype=dtype)  # type: ignore[arg-type]
    assert list(frame.columns) == ["embedding", "cps"]
    np.testing.assert_array_equal(np.stack(frame["embedding"]), split.embeddings.astype(dtype))
    assert frame["embedding"][7].base is not None  # a view: the split is in memory once
    assert list(client.frame("dev", ("index",)).columns) == []
    assert len(client.frame("dev", ())) == 300


def test_predictions_find_their_samples_by_path_in_any_order(client: Client, dev: pd.DataFrame) -> None:
    predicted = pd.DataFrame({"file_path": dev["file_path"], "predicted": dev["cps"] * 2, "step": 1}).sample(frac=1, random_state=0)
    for frame in (predicted, predicted.reset_index(drop=True), predicted.set_index("file_path")):
        joined = client.join("dev", frame)
        assert list(joined.columns) == ["file_path", "cps", "predicted", "step"]
        pd.testing.assert_frame_equal(joined[["file_path", "cps"]], dev)
        np.testing.assert_array_equal(joined["predicted"], dev["cps"] * 2)


def test_predictions_find_their_samples_by_index(client: Client, dev: pd.DataFrame) -> None:
    order = np.random.default_rng(0).permutation(len(dev))
    values = dev["cps"].to_numpy()[order]
    for frame in (
        pd.DataFrame({"index": order, "predicted": values}),
        pd.DataFrame({"predicted": values}, index=pd.Index(order, name="index")),
    ):
        np.testing.assert_array_equal(client.join("dev", frame)["predicted"], dev["cps"])
    unnamed = pd.DataFrame({"predicted": values}, index=order)
    np.testing.assert_array_equal(client.join("dev", unnamed, on="index")["predicted"], dev["cps"])
    # The row numbers of a frame are not the samples' unless it says so: predictions of a shuffled epoch have them, too.
    with pytest.raises(
        ValueError, match=r"has neither a column 'file_path' nor one 'index', .*; its columns: 'predicted'. .*on='ind"
    ):
        client.join("dev", pd.DataFrame({"predicted": values}))


def test_columns_of_the_split(client: Client, dev: pd.DataFrame, server: Server) -> None:
    predicted = pd.DataFrame({"file_path": dev["file_path"], "cps": 1.0})
    with pytest.raises(
        ValueError, match=r"the column 'cps' is in the split and in the frame: rename it, .* or leave it out of columns="
    ):
        client.join("dev", predicted)
    assert client.join("dev", predicted, columns=())["cps"].tolist() == [1.0] * 300
    joined = client.join("dev", predicted.drop(columns="cps"), columns=("embedding",))
    np.testing.assert_array_equal(np.stack(joined["embedding"]), server.snapshot.splits["dev"].embeddings)


def test_what_does_not_match_is_said(client: Client, dev: pd.DataFrame) -> None:
    predicted = pd.DataFrame({"file_path": dev["file_path"], "predicted": dev["cps"]})
    predicted.loc[[3, 5], "file_path"] = ["other/3.wav", None]
    first, second = dev["file_path"][3], dev["file_path"][5]
    said = (
        f"split 'dev': 2 of 300 samples have no row in the frame (first: '{first}', '{second}'); "
        f"2 rows of the frame are of no sample (first: 'other/3.wav', "
    )
    with pytest.raises(UnmatchedError) as raised:
        client.join("dev", predicted)
    assert str(raised.value).startswith(said)
    assert str(raised.value).endswith("; partial=True joins the others")
    assert raised.value.missing == (first, second)
    assert raised.value.unknown[0] == "other/3.wav"
    assert pickle.loads(pickle.dumps(raised.value)).missing == raised.value.missing
    with pytest.warns(UserWarning, match="2 of 300 samples have no row") as warned:
        joined = client.join("dev", predicted, partial=True)
    assert warned[0].filename == __file__
    assert list(joined.index) == [i for i in range(300) if i not in (3, 5)]
    np.testing.assert_array_equal(joined["predicted"], dev["cps"].drop([3, 5]))
    with pytest.raises(UnmatchedError, match=r"^split 'dev': 1 rows of the frame are of no sample \(first: 300\)"):
        client.join("dev", pd.DataFrame({"index": range(301)}))


def test_frames_that_contradict_themselves(client: Client, dev: pd.DataFrame) -> None:
    shifted = dev.assign(file_path=np.roll(dev["file_path"], 1)).drop(columns="cps")
    with pytest.raises(
        UnmatchedError, match=r"300 rows of the frame are of one sample by their path and of another by their index"
    ):
        client.join("dev", shifted)
    with pytest.raises(UnmatchedError, match=r"300 rows .* is the frame of other data\? Drop its 'file_path' if it means"):
        client.join("dev", shifted, on="index")
    with pytest.raises(ValueError, match=r"the index 1.5 is not a whole number"):
        client.join("dev", pd.DataFrame({"index": [1.5]}))
    with pytest.raises(ValueError, match="the frame has several columns 'a'"):
        client.join("dev", pd.DataFrame([["x", 1, 2]], columns=["file_path", "a", "a"]))


def test_several_rows_of_one_sample(client: Client, dev: pd.DataFrame) -> None:
    """As a sampler that pads makes them."""
    predicted = pd.DataFrame({"file_path": dev["file_path"], "predicted": dev["cps"], "layer": [np.ones(3)] * 300})
    padded = pd.concat([predicted, predicted.iloc[:2].assign(predicted=dev["cps"][:2])])
    assert len(client.join("dev", padded)) == 300
    padded = pd.concat([predicted, predicted.iloc[:2].assign(predicted=0.0)])
    for partial in (False, True):
        with pytest.raises(
            UnmatchedError, match=r"2 samples have several rows in the frame that differ \(first: 'audio/dev/en.croak/0001.wav', "
        ):
            client.join("dev", padded, partial=partial)
    nan = pd.concat([predicted.assign(predicted=np.nan), predicted.iloc[:1].assign(predicted=np.nan)])
    assert client.join("dev", nan)["predicted"].isna().all()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-3, 12), max_size=30), st.sampled_from(["index", "file_path"]))
def test_a_join_is_the_join_of_pandas_with_what_is_left_out_said(rows: list[int], key: str) -> None:
    samples = pd.DataFrame({"file_path": [f"a/{i}" for i in range(10)], "cps": np.arange(10, dtype=np.float32)}).rename_axis(
        "index"
    )
    frame = pd.DataFrame({key: [i if key == "index" else f"a/{i}" for i in rows], "value": [2 * i for i in rows]})
    expected = samples.reset_index().merge(frame.drop_duplicates(), on=key).set_index("index")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        joined = join(samples, frame, "s", partial=True)
    assert joined["value"].tolist() == [2 * i for i in joined.index]
    pd.testing.assert_frame_equal(joined, expected[list(joined.columns)], check_dtype=False, check_index_type=False)
    whole = set(rows) == set(range(10))
    assert bool(said) is not whole
    missing, unknown = 10 - len(joined), sum(not 0 <= i < 10 for i in rows)
    assert (f"{missing} of 10 samples have no row" in str([str(one.message) for one in said])) is (missing > 0)
    assert (f"{unknown} rows of the frame are of no sample" in str([str(one.message) for one in said])) is (unknown > 0)


def test_pandas_is_loaded_by_use_alone_and_its_lack_is_said(server: Server) -> None:
    program = f"""
import sys
from cpstream_client import Client
client = Client({server.url!r})
client.load("dev")
assert "pandas" not in sys.modules
sys.modules["pandas"] = None
client.frame("dev")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: frames need pandas; run: pip install 'cpstream[pandas]'"
