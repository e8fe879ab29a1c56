"""Three lines around a loop of one's own: is gradient flowing through each block?"""

import torch
from torch import nn

import sapflow

torch.manual_seed(0)
blocks = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4)]
model = nn.Sequential(nn.Linear(8, 32), *blocks, nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

watcher = sapflow.watch(model, "*", run_dir="runs/own-loop")

for _ in range(300):
    x = torch.randn(64, 8)
    loss = (model(x) - x.square().sum(-1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

print(watcher.report())
watcher.close()
print(f"loss {loss.item():.2f}; look at it: sapflow sanctum {watcher.run_dir}")
