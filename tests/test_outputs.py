"""A model without an output for every class is refused before it is compiled."""

import jax
import numpy as np
import pytest
from flax import nnx

from polyview.data.sources.manifest import class_targets
from polyview.errors import InputError
from polyview.model import split_module
from polyview.nn.towers import Features
from polyview.objectives.supervised import Classification
from polyview.training.outputs import check_outputs


class Model(nnx.Module):
    """Logits of a number of classes."""

    def __init__(self, classes, rngs):
        self.head = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, batch, *, key, train):
        z = self.head(batch["views"]["image"])
        return {"image": Features(z=z, h=z, local=None)}


def check(classes, task, objective=None):
    shape = jax.ShapeDtypeStruct((2, 1, 4), np.float32)
    batch = {"views": {"image": shape}, "present": {}, "targets": {}}
    parts = split_module(Model(classes, nnx.Rngs(0)))
    check_outputs(objective or Classification(), parts, batch, {"label": task})


def test_a_head_of_fewer_classes_than_the_data_is_refused():
    task = {"kind": "class", "classes": 16}
    check(16, task)
    check(17, task)
    with pytest.raises(InputError, match="3 outputs for 'label', which has 16 classes"):
        check(3, task)
    check(3, {"kind": "regression"})
    check(3, task, objective=lambda *_: None)  # one that predicts nothing


def test_rows_without_a_class_are_refused_where_each_is_predicted():
    known = ["cat", "dog"]
    (task,) = class_targets([0, 1], known).values()
    (partly,) = class_targets([0, -1], known).values()
    check(2, task)
    with pytest.raises(InputError, match="some rows have no 'label'.*labelled=True"):
        check(2, partly)
    check(2, partly, objective=lambda *_: None)
