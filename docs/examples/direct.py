"""Attack a network without Hydra, MLflow or a sweep: ``python direct.py``."""

import torch

from attacks import fgsm, per_image_record, pgd, select_correct, summarise
from own_network import OwnNetwork
from qnn.data import digits

torch.manual_seed(0)
data = digits()
net = OwnNetwork(channels=16, classes=10).eval()  # load your weights here

chosen = select_correct(net, data.test.pixels, data.test.labels, n=50, seed=0)
x, y = data.test.pixels(chosen.indices), chosen.labels
for attack in (fgsm, pgd):
    result = attack(net, x, y, eps=0.05)
    record = per_image_record(chosen.indices, y, x, result.x_adv, net(x).detach(), net(result.x_adv).detach())
    figures = summarise(record)
    low, high = figures["adversarial_accuracy_low"], figures["adversarial_accuracy_high"]
    print(f"{attack.__name__}: adversarial accuracy {figures['adversarial_accuracy']:.2f} ({low:.2f} – {high:.2f})")
