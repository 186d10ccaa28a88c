"""Plain convolutional networks without BatchNorm."""

import flax.linen as nn
from jaxtyping import Array, Float

from cure_jax.models.layers import Images, conv, flatten, normalize


class ConvNet(nn.Module):
    """Convolutions, then dense layers, with ReLU between all of them.

    The default is the small network of Wong and Kolter: 16 filters 4x4 with stride 2, 32 filters 4x4 with stride 2,
    dense 100 (4804 ReLUs on MNIST). With `padding=0` it is the ConvSmall of the ERAN benchmarks (3604 ReLUs), with
    `dense=(1000,)` their ConvMed (5704 ReLUs).

    References:
      Wong and Kolter, "Provable defenses against adversarial examples via the convex outer adversarial polytope",
      ICML 2018.

    Attributes:
      num_classes: Number of logits.
      convs: (features, kernel size, stride) of each convolution.
      dense: Widths of the hidden dense layers.
      padding: Zeros added on every side before each convolution.
      mean: Mean of the pixels, one value or one for each channel.
      std: Standard deviation of the pixels, likewise.
    """

    num_classes: int = 10
    convs: tuple[tuple[int, int, int], ...] = ((16, 4, 2), (32, 4, 2))
    dense: tuple[int, ...] = (100,)
    padding: int = 1
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Returns the logits; `train` makes no difference."""
        del train
        x = normalize(images, self.mean, self.std)
        for features, kernel, stride in self.convs:
            if min(x.shape[1:3]) + 2 * self.padding < kernel:
                raise ValueError(
                    f"A convolution with kernel {kernel} and padding {self.padding} got an image of {x.shape[1:3]} "
                    "pixels; expected at least the kernel's size after padding. Use fewer layers or more padding."
                )
            x = nn.relu(conv(features, kernel, stride, self.padding)(x))
        x = flatten(x)
        for width in self.dense:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
