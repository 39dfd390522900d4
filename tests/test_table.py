"""Tables of one's own: what becomes of their columns, against pandas and by hand."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from running import Command, run

from perceptrail import build
from perceptrail.data.module import DataModule
from perceptrail.data.table import Columns, read, table
from perceptrail.errors import UserError
from perceptrail.network import load

TRAIN = """age,colour,height,bought
31,red,1.5,yes
?,blue,1.7,no
25,,1.6,yes
40,red,1.8,no
50,blue,1.9,
"""
TEST = "bought,height,age,colour\nno,1.5,30,green\nyes,,20,blue\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test.csv").write_text(TEST)
    return {"path": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}


def test_every_column_becomes_numbers(files, caplog):
    with caplog.at_level(logging.INFO):
        data = table(target="bought", **files)
    assert data.columns.names == ["age", "height", "colour=blue", "colour=red"]
    x, y = data.train()
    median = 31  # of 25, 31 and 40: a row without a target has no say
    assert (
        x.tolist()
        == np.float32(
            [[31, 1.5, 0, 1], [median, 1.7, 1, 0], [25, 1.6, 0, 0], [40, 1.8, 0, 1]]
        ).tolist()
    )
    assert (data.classes, y.tolist(), data.by_column) == (("no", "yes"), [1, 0, 1, 0], True)
    x, y = data.test()
    # In another order; a category that is new is none, and the median is that of the training part.
    assert x.tolist() == np.float32([[30, 1.5, 0, 0], [20, 1.65, 1, 0]]).tolist()
    assert y.tolist() == [0, 1]
    assert "1 rows without bought are left out" in caplog.text
    assert "age 1 (the median, 31), colour 1 (none of its categories)" in caplog.text


def test_columns_are_stored_as_json_and_read_a_table_without_a_target(files):
    columns = table(target="bought", **files).columns
    again = Columns(**json.loads(json.dumps(columns.facts())))
    frame = read(files["test"], key="input").drop(columns="bought")
    assert np.array_equal(again.rows(frame), columns.rows(frame))


@pytest.mark.parametrize(
    ("suffix", "separator"),
    [
        (".csv", ","),
        (".csv", ";"),
        (".csv", "\t"),
        (".csv.gz", ";"),
        (".tsv", "\t"),
        (".parquet", ""),
    ],
)
def test_every_format_gives_the_same(tmp_path, suffix, separator):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(50, 3)), columns=list("abc")).astype({"c": "float32"})
    path = tmp_path / f"numbers{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep=separator)
    one, other = table(path=str(path), target="c"), table(path=frame, target="c")
    assert one.digest == other.digest
    for a, b in zip((*one.train(), *one.test()), (*other.train(), *other.test()), strict=True):
        assert np.array_equal(a, b)
    assert (len(one.train()[1]), len(one.test()[1])) == (40, 10)


@pytest.mark.parametrize(
    ("values", "options", "classes", "first"),
    [
        (["b", "a"] * 10, {}, ("a", "b"), 1),
        ([True, False] * 10, {}, ("False", "True"), 1),
        ([10, 9] * 10, {}, ("9", "10"), 1),
        ([2.0, 1.0] * 10 + [None], {}, ("1", "2"), 1),  # not whole for pandas, for want of one
        ([2, 1] * 10, {"kind": "numbers"}, (), 2.0),
        (list(range(30)), {}, (), 0.0),
        ([0.5, 1.0] * 10, {}, (), 0.5),
    ],
    ids=str,
)
def test_a_target_says_whether_it_is_a_class(values, options, classes, first):
    frame = pd.DataFrame({"x": np.arange(len(values), dtype=float), "y": values})
    data = table(path=frame, target="y", test=frame, **options)
    _, y = data.train()
    assert (data.classes, y[0], y.dtype) == (classes, first, np.int64 if classes else np.float32)
    assert data.targets == (() if classes else ("y",))


def test_several_targets_are_numbers():
    frame = pd.DataFrame(np.arange(40.0).reshape(10, 4), columns=list("abcd"))
    data = table(path=frame, target=["a", "b"], test=frame)
    assert (data.targets, data.shape, data.train()[1].shape) == (("a", "b"), (2,), (10, 2))


def test_a_held_out_share_keeps_every_class():
    frame = pd.DataFrame({"x": range(100), "y": ["rare"] * 10 + ["frequent"] * 90})
    data = table(path=frame, target="y")
    _, held = data.test()
    assert (len(held), (held == data.classes.index("rare")).sum()) == (20, 2)


def test_columns_are_standardised_by_the_training_part_alone():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(5, 3, 200), "y": rng.integers(0, 2, 200)})
    data = DataModule(table(path=frame, target="y"), batch_size=10, val_size=0.25, seed=0)
    data.setup("fit")
    seen = data.train[0].numpy()
    assert data.mean == pytest.approx(seen.mean(0), rel=1e-4)
    assert data.std == pytest.approx(seen.std(0), rel=1e-4)


FRAME = pd.DataFrame({"a": [1.0, 2, 3, 4], "b": list("uvuv"), "y": [0, 1, 0, 1]})


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({}, {"target": "z"}, "data.path: there is no column z; it has a, b, y"),
        ({}, {"target": "yy"}, "no column yy (did you mean 'y'?)"),
        ({}, {"features": ["a", "y"]}, "data.features: must not hold y"),
        ({}, {"features": ["c"]}, "there is no column c"),
        ({"y": [1, 1, 1, 1]}, {}, "data.target=y: must have two classes at least, not 1"),
        (
            {"a": [1, 2, np.inf, 4]},
            {},
            "column a must be finite; it is not in row 3",
        ),
        ({"a": [None] * 4}, {}, "a holds nothing; leave it out: 'data.features=[b]'"),
        ({}, {"kind": "numbers", "target": "b"}, "data.target=b: must hold numbers"),
        ({}, {"kind": "classes", "target": ["a", "y"]}, "must be one column for classes, not 2"),
        ({}, {"test": FRAME.replace({"y": {0: 2}})}, "data.target=y: 2 only in the test part"),
        ({}, {"test": FRAME.drop(columns="a")}, "there is no column a"),
        ({}, {"test": "no.csv"}, "data.test=no.csv: there is no such file"),
        ({}, {"test": "no.xls"}, "data.test=no.xls: must end in .csv, .tsv, .parquet"),
    ],
    ids=str,
)
def test_what_a_table_cannot_be_is_said_in_a_line(changed, options, said):
    arguments = {"target": "y", "test": FRAME} | options
    with pytest.raises(UserError) as caught:
        table(path=FRAME.assign(**changed), **arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_of_many_texts_is_to_be_left_out():
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(101)], "a": 1.0, "y": [0, 1] * 50 + [0]})
    with pytest.raises(UserError, match=r"name holds 101 different texts.*'data.features=\[a\]'"):
        table(path=frame, target="y", test=frame)


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UserError, match=r"data\.path=.*a\.parquet: cannot be read \(.+\)"):
        read(str(tmp_path / "a.parquet"), key="data.path")


@pytest.mark.parametrize("target", ["nowhere.frame", "pandas.no_such_function"])
def test_a_function_that_there_is_not_is_named_with_its_key(target):
    node = {"_target_": "perceptrail.data.table.table", "path": {"_target_": target}, "target": "y"}
    with pytest.raises(UserError) as caught:
        build.dataset(OmegaConf.create({"data": node}))
    assert str(caught.value).startswith(f"data.path._target_={target}: cannot be imported (")


def test_a_csv_is_trained_on_and_tested_by_command(tmp_path, files):
    trained = run(
        *("train.py", "data=table", f"data.path={files['path']}", "data.target=bought"),
        *(f"data.test={files['test']}", "data.val_size=1", "data.batch_size=2", "trainer=cpu"),
        *("tracking=none", "figures=false", "trainer.max_epochs=2", "hydra.run.dir=run"),
        cwd=tmp_path,
    )
    assert "missing values: age 1" in trained.output
    _, facts = load(tmp_path / "run" / "model")
    assert Columns(**facts["columns"]).facts() == table(target="bought", **files).columns.facts()
    tested = run("evaluate.py", "run=run", "tracking=none", cwd=tmp_path)
    assert "(2 examples of train)" in tested.output


def test_targets_that_are_numbers_are_refused_where_classes_are_learned(tmp_path):
    FRAME.assign(y=[0.5, 1, 2, 3]).to_csv(tmp_path / "a.csv", index=False)
    refused = Command(
        "train.py", "data=table", "data.path=a.csv", "data.target=y", "tracking=none", cwd=tmp_path
    )
    assert refused.wait().code == 1
    assert "the targets of a (y) are numbers, and must be classes" in refused.output


def test_whole_numbers_that_are_names_are_known_where_others_are_missing():
    learned = pd.DataFrame({"zip": [5000, 1000, 5000]})
    columns = Columns.of(learned, categorical=["zip"])
    asked = pd.DataFrame({"zip": [np.nan, 5000, 1000]})
    assert columns.rows(asked).tolist() == [[0, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_part_without_examples_is_refused(tmp_path, share):
    frame = pd.DataFrame({"x": range(20), "y": ["a", "b"] * 10})
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match=f"data.test={share}: leaves .* of 20 examples"):
        table(path=str(tmp_path / "t.csv"), target="y", test=share)
