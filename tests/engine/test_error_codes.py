"""What the engine can say of a sequence is in the catalogue of error rows."""

from xlmr_ray.batch.codes import CATALOGUE
from xlmr_ray.engine import error_codes


def test_every_failure_is_documented():
    names = {value for name, value in vars(error_codes).items() if name.isupper()}
    assert len(names) == 4
    assert all(CATALOGUE[name].level == "row" for name in names)
