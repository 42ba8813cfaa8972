"""Whatever is chosen is chosen on validation data: no function that chooses may open the test split."""
import pytest

from sepnb import langevin, separation, staying, toy


@pytest.fixture
def splits(monkeypatch):
    "The splits that are opened meanwhile."
    seen, real = [], toy.ToyData.__init__
    monkeypatch.setattr(toy.ToyData, "__init__", lambda self, split="train", *args, **kwargs: (seen.append(split), real(self, split, *args, **kwargs))[1])
    return seen


@pytest.mark.parametrize("row", ["coordinate-wavetable", "coordinate-flowavenet", "projection-wavetable"])
def test_options_of_a_row(row, splits, monkeypatch):
    monkeypatch.setitem(separation.TRIED, "laptop", 1)
    bank = separation._prior(separation.ROWS[row].prior, "smoke")  # small priors: what is tested is where they are asked
    options, tried = separation.choose(row, "laptop", bank)
    assert set(splits) == {"valid"} and len(tried) == len(separation.ROWS[row].tried) and options["sigmas"]


def test_step_sizes_of_langevin(splits):
    langevin.chosen_eta("BASIS, told sigma", "smoke")
    assert set(splits) == {"valid"}


def test_step_size_of_the_adjusted_chain(splits):
    bank = staying.load_bank("flowavenet-conditional", "toy", "smoke")
    assert staying.step_size(bank, 0.359, staying.STAY["smoke"]) in staying.SIZES_TRIED
    assert set(splits) == {"valid"}


def test_test_mixes_of_the_tables_are_nobody_elses():
    assert separation.TEST_SEED == langevin.TEST_SEED == 1  # the seed of everything that was ever looked at is 0
    a, b = (toy.ToyData("test", t=100, seed=s).batch([0]) for s in (0, 1))
    assert not (a == b).all()
