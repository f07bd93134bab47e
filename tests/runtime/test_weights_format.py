"""Reading weights files: what is said of the file, and what is another's error."""

import h5py
import numpy as np
import pytest

from tf_models.runtime.weights_format import PREFIX, WeightsError, opened, provenance


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        file["values"] = np.zeros(3)
    return tmp_path / "w.weights.h5"


@pytest.mark.parametrize("error", [ValueError("mine"), OSError(5, "mine"), FileNotFoundError(2, "mine"), MemoryError()])
def test_an_error_of_the_block_is_not_taken_for_damage(path, error):
    with pytest.raises(type(error)) as caught, opened(path):
        raise error
    assert caught.value is error


def test_what_h5py_and_the_room_itself_raise_begins_with_the_file_s_name(path):
    with pytest.raises(WeightsError, match=r"w.weights.h5: is damaged \(KeyError: "), opened(path) as file:
        file["another"]
    with pytest.raises(WeightsError, match=r"w.weights.h5: mine$"), opened(path):
        raise WeightsError("mine")


def test_an_attribute_that_is_no_text(path):
    with h5py.File(path, "r+") as file:
        file.attrs[PREFIX + "model"] = np.bytes_(b"\xff")
    with pytest.raises(WeightsError, match=r"w.weights.h5: its attribute weightbridge_model is not a text in UTF-8$"):
        provenance(path)
