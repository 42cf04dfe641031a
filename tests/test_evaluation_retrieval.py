"""Recall between observed views, against a loop over samples."""

import itertools

import jax
import numpy as np
import pytest

from polyview import devices
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import class_task
from polyview.data.views import Generated
from polyview.errors import InputError
from polyview.evaluation.retrieval import Retrieval, recall_of_views

NAMES = ["song", "kai", "gothic"]


def test_recall_is_that_of_a_loop_and_a_missing_view_takes_no_part(rng):
    sample, view = (a.ravel() for a in np.meshgrid(range(12), range(3), indexing="ij"))
    kept = rng.permutation(36)[:31]  # five images are missing, in no order
    sample, view = sample[kept], view[kept]
    centres = rng.normal(size=(12, 4))
    features = (centres[sample] + rng.normal(size=(31, 4))).astype(np.float32)

    found = recall_of_views(features, sample, view, NAMES)

    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    row = {pair: i for i, pair in enumerate(zip(sample, view, strict=True))}
    assert len(found) == 6
    for a, b in itertools.permutations(range(3), 2):
        both = [s for s in range(12) if (s, a) in row and (s, b) in row]
        hits = {1: 0, 5: 0}
        for s in both:
            scores = {t: unit[row[s, a]] @ unit[row[t, b]] for t in both}
            place = sorted(both, key=lambda t: -scores[t]).index(s)
            for k in hits:
                hits[k] += place < k
        pair = found[f"{NAMES[a]} -> {NAMES[b]}"]
        assert pair["rows"] == len(both)
        assert pair["recall@1"] == pytest.approx(hits[1] / len(both))
        assert pair["recall@5"] == pytest.approx(hits[5] / len(both))


def _source(images, sample, view):
    source = InMemory({"image": images, "label": sample, "view": view})
    source.targets = {
        "label": class_task([str(i) for i in range(4)]),
        "view": class_task(NAMES),
    }
    return source


def test_pixels_find_equal_images_and_bad_targets_are_named(rng):
    one = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
    sample, view = (a.ravel() for a in np.meshgrid(range(4), range(2), indexing="ij"))
    views = Generated(1, lambda image, rng, m: image[None], targets=("label", "view"))
    evaluation = Retrieval(_source(one[sample], sample, view), views, batch_size=8)
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        result = evaluation(jax.jit(evaluation.raw), mesh)
    assert result.columns == {"recall@1 %": 100.0, "recall@5 %": 100.0}
    assert set(result["pairs"]) == {"song -> kai", "kai -> song"}
    with pytest.raises(
        InputError, match="no target 'font'.*correct its sample or view"
    ):
        Retrieval(_source(one[sample], sample, view), views, view="font")
