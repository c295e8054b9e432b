"""Several objectives of one network, with Aligned-MTL."""

from torchjd.aggregation import AlignedMTL
from torchjd.autojac import backward, jac_to_grad


def train(net, objectives, loader, optimizer):
    aggregator = AlignedMTL()
    for x, y in loader:
        optimizer.zero_grad()
        prediction = net(x)
        backward([objective(prediction, y) for objective in objectives])
        jac_to_grad(net.parameters(), aggregator)
        optimizer.step()
