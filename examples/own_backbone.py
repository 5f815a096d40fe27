"""A backbone of one's own: two layers of torchvision's ResNet-34."""

from torch import nn
from torchvision.models import resnet34

from texture_ad.models.backbone import Backbone
from texture_ad.models.networks import Chain, Library, Network


class ResNet34(Backbone):
    """Read features from the first layers of a ResNet-34."""

    def open_network(self, library: Library, name: str, weights: str) -> Network:
        """Return the network; weights="none" is how a detector's file, which holds them, is loaded."""
        net = resnet34(weights=None if weights == "none" else "DEFAULT")
        first = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        return Chain({"layer1": first, "layer2": net.layer2})
