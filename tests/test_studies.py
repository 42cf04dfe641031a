"""Benchmarks of many runs: who shares the rows, and what is done again."""

import json
import threading
import time

import pytest

from benchmarks.studies import locked, measure_missing


class Study:
    """Three rates are tried; two seeds then use the best, once all three are known."""

    def __init__(self):
        self.measured = []

    def __call__(self, rows):
        for rate in (1, 2, 3):
            yield {"rate": rate}, lambda rate=rate: self.measure("rate", rate)
        tried = [row for row in rows if "rate" in row]
        if len(tried) == 3:
            best = max(tried, key=lambda row: row["value"])["rate"]
            for seed in (0, 1):
                about = {"seed": seed, "chosen": best}
                yield about, lambda seed=seed: self.measure("seed", seed)

    def measure(self, what, number):
        time.sleep(0.05)
        self.measured.append((what, number))
        return {"value": -abs(number - 2)}


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr("polyview.hosts.machine", dict)


def test_two_share_the_rows_and_wait_for_what_the_rest_depends_on(tmp_path, machine):
    study, output = Study(), tmp_path / "table.json"
    found = []

    def work():
        rows = measure_missing(study, output, tmp_path, lambda rows: {"n": len(rows)})
        found.append(rows)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    whole = [("rate", 1), ("rate", 2), ("rate", 3), ("seed", 0), ("seed", 1)]
    assert sorted(study.measured) == whole  # each once
    content = json.loads(output.read_text())
    assert content["n"] == 5 and found == [content["rows"]] * 2
    assert {row["chosen"] for row in content["rows"] if "seed" in row} == {2}


def test_what_another_process_has_just_measured_is_left(tmp_path, machine):
    output = tmp_path / "table.json"

    def study(rows):
        output.write_text(json.dumps({"rows": [{"rate": 1, "value": 5}]}))
        yield {"rate": 1}, lambda: pytest.fail("measured again")

    (row,) = measure_missing(study, output, tmp_path, lambda rows: {})
    assert row["value"] == 5


def test_a_study_goes_on_where_it_failed(tmp_path, machine):
    study, output = Study(), tmp_path / "table.json"

    def fails(rows):
        for number, row in enumerate(study(rows)):
            if number == 2:
                raise RuntimeError
            yield row

    with pytest.raises(RuntimeError):
        measure_missing(fails, output, tmp_path, lambda rows: {})
    assert len(study.measured) == 2
    measure_missing(study, output, tmp_path, lambda rows: {})
    measure_missing(study, output, tmp_path, lambda rows: {})
    assert len(study.measured) == 5


def test_a_lock_is_one_holders(tmp_path):
    with locked(tmp_path / "a.lock"), locked(tmp_path / "a.lock", wait=False) as other:
        assert not other
    with locked(tmp_path / "a.lock", wait=False) as free:
        assert free
