"""Store a network that was trained elsewhere, so that sweeps can attack it: ``python store.py FOLDER``."""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from own_network import OwnNetwork
from qnn.checkpoint import save_network
from qnn.data import digits
from qnn.evaluation import evaluate

torch.manual_seed(0)
data = digits()
net = OwnNetwork(channels=16, classes=10)
optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
for _ in range(4):
    for batch in torch.randperm(len(data.train)).split(32):
        loss = F.cross_entropy(net(data.train.pixels(batch)), data.train.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

description = {
    "model": "own_network",
    "net": {"_target_": "own_network.build", "channels": 16},  # as in conf/model/own_network.yaml
    "quantizer": "dorefa",
    "bits": "FP",
    "test_accuracy": evaluate(net.eval(), data.test)["accuracy"],
}
save_network(Path(sys.argv[1]), net, description)
print(f"test accuracy {description['test_accuracy']:.2%}")
