"""Flax linen networks for images in [0, 1].

Every network takes images [batch, height, width, channels] and `train: bool = False`, normalises by (mean, std) in its
first layer, so that radii stay in pixel units, and returns logits [batch, num_classes]. Those with BatchNorm have the
fields `momentum` and `axis_name`, and the collection "batch_stats". Any other flax module serves as well, of linen or
nnx, and so does a pair of functions; `pretrained(name).as_nnx()` is a kept network as an nnx module.
"""

from cure_jax.models.archive import pretrained, pretrained_examples, pretrained_index, pretrained_names
from cure_jax.models.cnn import CNN5, CNN7, CNN7_narrow, CNN7_wide
from cure_jax.models.convnet import ConvNet
from cure_jax.models.fitted import Fitted, classifier
from cure_jax.models.lipschitz_net import ContractingConv, ContractingDense, LipschitzNet
from cure_jax.models.mlp import MLP
from cure_jax.models.registry import create, names
from cure_jax.models.resnet import ResNet
from cure_jax.models.rounding import rounded

__all__ = [
    "CNN5",
    "CNN7",
    "MLP",
    "CNN7_narrow",
    "CNN7_wide",
    "ContractingConv",
    "ContractingDense",
    "ConvNet",
    "Fitted",
    "LipschitzNet",
    "ResNet",
    "classifier",
    "create",
    "names",
    "pretrained",
    "pretrained_examples",
    "pretrained_index",
    "pretrained_names",
    "rounded",
]
