"""A Keras model as a table of variables: the names of layers."""

import pytest


def _names() -> list[str]:
    import keras

    return [keras.layers.Dense(1).name for _ in range(2)]


def test_names_are_those_of_a_new_process_and_the_counts_before_come_back():
    from converter.planning.variables import fresh_names

    before = int(_names()[1].partition("_")[2])
    for _ in range(2):
        with fresh_names():
            assert _names() == ["dense", "dense_1"]
    assert _names() == [f"dense_{before + 1}", f"dense_{before + 2}"]


def test_counts_come_back_after_an_error_and_where_the_session_was_cleared():
    import keras

    from converter.planning.variables import fresh_names

    before = int(_names()[1].partition("_")[2])

    def build() -> None:
        with fresh_names():
            keras.backend.clear_session()
            _names()
            raise KeyError

    with pytest.raises(KeyError):
        build()
    assert _names()[0] == f"dense_{before + 1}"


def test_a_model_that_is_too_large_is_refused_under_fresh_names_too():
    from converter.planning.variables import fresh_names
    from tf_models.runtime.abstract import TooLarge, abstract

    def build() -> None:
        with fresh_names():
            for _ in range(2000):
                _names()

    with pytest.raises(TooLarge):
        abstract(build, 1)
