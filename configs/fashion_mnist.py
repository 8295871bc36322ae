"""ResNet-8 on Fashion-MNIST, one epoch: real data through TFDS in minutes on a CPU.

Run:      jaxclf train configs/fashion_mnist.py --workdir runs/fashion_mnist [--model.head identity --model.maps 10]
Data:     jaxclf data prepare fashion_mnist [--downloads DIR]
Hardware: any; README has the accuracy and the images/s of two CPU cores.
Source:   ours; the CIFAR recipe of configs/cifar100_resnet32.py at a constant rate. No published result.
"""

from jaxclf.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig


def get_config(head: str = "learned") -> Config:
    """Return the recipe with the head `head`."""
    return Config(
        data=DataConfig(dataset="fashion_mnist", batch_size=128, pad=2, flip=True),
        model=ModelConfig(backbone="resnet8", head=head),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant"),
        run=RunConfig(epochs=1, checkpoint_every=100),
    )
