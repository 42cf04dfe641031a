"""Rows by class: an image, then those of the same class, each read when asked for."""

import logging
import pickle

import numpy as np
import pytest

from polyview.data.drawn import Drawn
from polyview.data.parts import Parts
from polyview.data.pipeline import batches
from polyview.data.sources.by_class import ByClass
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError

LABELS = [2, 0, 2, 1, 2, 0, 3, 1]


class Counted(InMemory):
    """Rows with their number as the image; `read` lists those that were read."""

    digest = "of the source"

    def __init__(self, labels, corrupt=(), kind="class"):
        numbers = np.arange(len(labels)).repeat(4).reshape(-1, 2, 2, 1).astype(np.uint8)
        task = {"kind": kind, "classes": 9, "names": list("abcdefghi")}
        super().__init__({"image": numbers, "label": labels}, {"label": task})
        self.read, self.corrupt = [], set(corrupt)

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.corrupt:
            raise CorruptRecord("broken")
        return super().__getitem__(index)


def together(source, labels):
    """Counted, whose rows are read in one call, as array_record can."""

    def read_many(indices):
        return [source[i] for i in indices]

    source.__getitems__ = read_many
    return source


def numbers(images):
    return [int(images[k][0, 0, 0]) for k in range(len(images))]


@pytest.mark.parametrize("many", [False, True])
def test_a_row_brings_its_image_and_then_those_of_its_class(many):
    source = Counted(LABELS)
    rows = ByClass(together(source, LABELS) if many else source)
    assert len(rows) == 8 and rows.targets == source.targets
    examples = rows.__getitems__(range(8)) if many else [rows[i] for i in range(8)]
    for i, example in enumerate(examples):
        others = [j for j in range(8) if LABELS[j] == LABELS[i] and j != i]
        assert numbers(example["images"]) == [i, *others]
        assert example["label"] == LABELS[i] and example["image"][0, 0, 0] == i
        with pytest.raises(IndexError):
            example["images"][1 + len(others)]
        with pytest.raises(IndexError):
            example["images"][-1]
    with pytest.raises(IndexError):
        rows[8]


def test_labels_are_read_once_and_images_when_asked_for():
    source = Counted(LABELS)
    rows = ByClass(source)
    assert source.read == []
    first = rows[0]["images"]
    assert sorted(source.read) == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    source.read.clear()
    rows[4]
    assert source.read == [4]
    assert int(first[2][0, 0, 0]) == 4
    assert source.read == [4, 4]
    assert first[0] is not None and source.read == [4, 4]


def test_rows_without_a_label_or_unreadable_ones_are_in_no_class():
    labels = [0, -1, 0, -1, 0, 0]
    for source in Counted(labels, [2]), together(Counted(labels, [2]), labels):
        rows = ByClass(source)
        assert [numbers(rows[i]["images"]) for i in (0, 1, 3, 5)] == [
            [0, 4, 5],
            [1],
            [3],
            [5, 0, 4],
        ]
        with pytest.raises(CorruptRecord):
            rows[2]
        source.corrupt.add(4)  # broken since the labels were read
        with pytest.raises(CorruptRecord):
            rows[0]["images"][1]


def test_a_partly_labelled_source_is_grouped_too():
    rows = ByClass(Counted([0, -1, 0], kind="class of some rows"))
    assert numbers(rows[0]["images"]) == [0, 2] and numbers(rows[1]["images"]) == [1]


def test_classes_of_one_image_repeat_it_and_are_told_once(caplog):
    rows = ByClass(Counted(LABELS))
    views = Drawn(3, lambda image, rng, m: image[None])
    with caplog.at_level(logging.WARNING):
        example = rows[6]
        rows[3], rows[6]
    made = views(example, np.random.default_rng(0))
    assert made["views"]["image"].ravel().tolist() == [6] * 12
    (record,) = caplog.records
    assert "1 of 4 classes have one image (the first: label 3)" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ByClass(Counted([0, 0]))[0]
    assert not caplog.records


def test_a_batch_holds_several_images_of_each_class():
    rows = ByClass(Parts("train", 320))
    own = Parts("train", 320)
    views = Drawn(3, lambda image, rng, m: image[None], targets=["label", "attributes"])
    place = {own[i]["image"].tobytes(): i for i in range(320)}
    for _, batch in batches(rows, views, seed=0, batch_size=32, steps=3):
        for i, index in enumerate(batch["index"].tolist()):
            found = [place[view.tobytes()] for view in batch["views"]["image"][i]]
            assert found[0] == index and len(set(found)) == 3
            assert {own[j]["label"] for j in found} == {batch["targets"]["label"][i]}
            np.testing.assert_array_equal(
                batch["targets"]["attributes"][i], own[index]["attributes"]
            )


def test_the_digest_is_of_the_source_and_the_arguments():
    source = Counted(LABELS)
    source.targets["kind"] = source.targets["label"]
    made = [ByClass(source), ByClass(source, "kind"), ByClass(source, field="other")]
    assert len({rows.digest for rows in made} | {source.digest}) == 4
    assert pickle.loads(pickle.dumps(made[0])).digest == made[0].digest
    assert ByClass(Parts("test", 4)).digest != ByClass(Parts("test", 5)).digest
    assert ByClass(InMemory({"label": [0]}, source.targets)).digest == ""


def test_bad_arguments_are_refused():
    source = Counted(LABELS)
    with pytest.raises(InputError, match="no target 'labels'; did you mean 'label'"):
        ByClass(source, "labels")
    with pytest.raises(InputError, match="no target 'label'; it has no targets"):
        ByClass(InMemory({"label": [0]}))
    with pytest.raises(InputError, match="of kind 'multi-label'.*of kind 'class'"):
        ByClass(Parts("test", 4), "attributes")
    with pytest.raises(InputError, match="no field 'picture', only image, label"):
        ByClass(source, field="picture")[0]
