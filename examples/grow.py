"""A seed grows in a model of one's own: it learns beside it, blends in when it is sound, and is exported with it."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sapflow

torch.manual_seed(0)
images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
images, order = images.float() / 16, torch.randperm(len(labels))
train, held_out = order[360:], order[:360]

model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def accuracy(net):
    """On what is held out, in percent."""
    with torch.no_grad():
        return 100 * (net(images[held_out]).argmax(-1) == labels[held_out]).double().mean().item()


training = sapflow.SeedTraining(blending_steps=80)
growth = sapflow.grow(model, {"1": "after"}, optimizer=optimizer, run_dir="runs/grown", training=training, epochs=20)
for _ in range(20):
    for batch in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        loss = growth.loss(lambda net, batch=batch: F.cross_entropy(net(images[batch]), labels[batch]))
        loss.backward()
        optimizer.step()
    (seed,) = growth.epoch(accuracy).seeds
    print(f"{seed.stage:<10} α {seed.alpha:.2f}  gain {seed.grad_ratio:.2f}  {accuracy(model):.1f} %")

growth.close()
plain = growth.export()  # no class of Sapflow's in it
print(f"exported: {accuracy(plain):.1f} %; look at it: sapflow sanctum {growth.run_dir}")
