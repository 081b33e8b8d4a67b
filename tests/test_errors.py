import pickle
import re

import pytest

from penstock import errors
from penstock.errors import (
    InvalidRequest,
    MissingExtra,
    Overloaded,
    PenstockError,
    RegistryError,
    StoreError,
)


def kinds(root=PenstockError):
    for kind in root.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize(
    "error",
    [
        MissingExtra("ray", "ray"),
        InvalidRequest("No.", "Ask otherwise.", "prompt"),
        Overloaded("Full.", "Wait.", 7.5),
        StoreError("Away.", transient=True),
        RegistryError("Away.", "Look.", True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_comes_from_another_process_is_whole(error):
    error.__cause__ = ValueError("why")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_every_error_is_in_the_tree_that_is_drawn():
    for kind in kinds():
        if kind.__module__ == errors.__name__:
            assert re.search(rf"-- {kind.__name__}\b", errors.__doc__), kind
