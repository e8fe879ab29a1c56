"""A NaN that is born deep inside of a network, named: the module, the pass, and the first parameter that it reached."""

import torch
from torch import nn

import sapflow


class Distance(nn.Module):
    """‖A·x − c‖ for learned centres c: where A·x meets a centre exactly, the square root has an infinite slope."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width, bias=False)
        self.centres = nn.Parameter(torch.randn(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = self.project(x).unsqueeze(1) - self.centres
        return apart.square().sum(-1).sqrt()


torch.manual_seed(0)
width = 16
blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()), Distance(width), nn.Sequential(nn.Linear(width, width))]
model = nn.Sequential(nn.Linear(8, width), *blocks, nn.Linear(width, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

watcher = sapflow.watch(model, "*", run_dir="runs/planted-nan")

for step in range(1, 41):
    x = torch.randn(32, 8)
    if step == 30:  # the plant: one centre is where one input of the batch will be
        with torch.no_grad():
            blocks[1].centres[3] = blocks[1].project(blocks[0](model[0](x)))[5]
    loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

(origin,) = watcher.non_finite
print(origin.text)
print(f"module {origin.slot_id!r}, pass {origin.passes}, parameter {origin.parameter!r}")
watcher.close()
