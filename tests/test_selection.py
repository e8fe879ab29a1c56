"""Choosing modules: globs by the parts of a name, types, predicates; what means nothing is an error that helps."""

import pytest
from torch import nn

from sapflow.errors import InputError
from sapflow.gradients.selection import select


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.Linear(2, 2)
        self.adapter = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2))


@pytest.fixture
def model():
    return nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()]), "head": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("head", ["head"]),
        ("layers.*.adapter", ["layers.0.adapter", "layers.1.adapter"]),
        ("layers.*", ["layers.0", "layers.1"]),
        ("layers.[1-9].a*", ["layers.1.attention", "layers.1.adapter"]),
        ("**.adapter.0", ["layers.0.adapter.0", "layers.1.adapter.0"]),
        ("**.head", ["head"]),
        (["head", "layers.0"], ["layers.0", "head"]),
        (Block, ["layers.0", "layers.1"]),
        ([Block, "head"], ["layers.0", "layers.1", "head"]),
        (lambda name, module: name.endswith("1") and isinstance(module, nn.Linear),
         ["layers.0.adapter.1", "layers.1.adapter.1"]),
        ("", [""]),
        ("*", ["layers", "head"]),
    ],
)  # fmt: skip
def test_what_is_meant(model, what, names):
    found = select(model, what)
    assert list(found) == names
    assert all(found[name] is model.get_submodule(name) for name in names)


@pytest.mark.parametrize(
    ("what", "help_"),
    [
        ("layer.*.adapter", "layers.0.adapter"),
        ("haed", "head"),
        (nn.Conv2d, "Block"),
        (lambda name, module: False, "predicate"),
        (["head", "nothing"], "'nothing'"),
    ],
)
def test_what_means_nothing_is_an_error_that_shows_what_comes_near(model, what, help_):
    with pytest.raises(InputError) as error:
        select(model, what)
    assert help_ in str(error.value)


def test_a_model_without_submodules():
    with pytest.raises(InputError, match="no submodules"):
        select(nn.Linear(1, 1), "x")
