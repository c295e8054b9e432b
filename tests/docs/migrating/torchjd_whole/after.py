"""Several objectives of one network, with Aligned-MTL."""

import gradsurgery as gs


def train(net, objectives, loader, optimizer):
    surgery = gs.GradientAggregator("alignedmtl")
    for x, y in loader:
        optimizer.zero_grad()
        prediction = net(x)
        surgery.backward([objective(prediction, y) for objective in objectives], shared=net)
        optimizer.step()
