"""Choosing modules: globs by the parts of a name, types, predicates; what means nothing is an error that helps."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

from sapflow.errors import InputError
from sapflow.gradients.selection import kind_of, select


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


def test_a_shared_module_is_meant_by_any_of_its_names_and_given_by_the_first(model):
    model["shared"], model["layers"][1] = model["layers"][0], checkpoint_wrapper(model["layers"][0])
    for what in ("shared", "layers.1", ["layers.1", "shared", "layers.0"], Block):
        assert select(model, what) == {"layers.0": model["layers"][0]}
    assert select(model, "shared.adapter.*") == select(model, "layers.0.adapter.*")
    assert list(select(model, "*")) == ["layers", "layers.0", "head"]


def test_a_model_without_submodules():
    with pytest.raises(InputError, match="no submodules"):
        select(nn.Linear(1, 1), "x")


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# torch.compile imports a part of torch that warns about another one.
compiles = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


@compiles
def test_wrappers_are_no_part_of_a_name(model, one_rank):
    plain = dict(model.named_modules())
    for layers, index in ((model["layers"], 0), (model["layers"][1], "adapter")):
        layers.__setattr__(str(index), checkpoint_wrapper(layers.get_submodule(str(index))))
    for wrapped in (
        DistributedDataParallel(model),
        torch.compile(model),
        torch.compile(DistributedDataParallel(model)),
        DistributedDataParallel(torch.compile(model)),
        checkpoint_wrapper(model),
    ):
        assert {name: module for name, module in select(wrapped, "**").items() if name} == {
            name: module for name, module in plain.items() if name
        }


def test_a_part_that_only_is_called_module_keeps_its_name():
    assert list(select(nn.ModuleDict({"module": nn.ModuleDict({"x": nn.Linear(1, 1)})}), "**.x")) == ["module.x"]


@compiles
def test_of_wrappers_only_that_of_torch_compile_is_measured():
    block, other, third = Block(), Block(), Block()
    compiled = torch.compile(block), torch.compile(checkpoint_wrapper(other)), torch.compile(third)
    model = nn.Sequential(compiled[0], compiled[1], checkpoint_wrapper(compiled[2]), checkpoint_wrapper(Block()))
    found = select(model, "*")
    assert list(found) == ["0", "1", "2", "3"]
    assert [found[str(i)] for i in range(3)] == list(compiled)
    assert type(found["3"]) is Block
    assert {kind_of(module) for module in found.values()} == {"Block"}
    assert select(model, Block) == found
    assert select(model, lambda name, module: isinstance(module, torch._dynamo.OptimizedModule)) == {
        str(i): wrapper for i, wrapper in enumerate(compiled)
    }
