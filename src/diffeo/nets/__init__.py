"""Conditioners: ordinary networks (x, context) -> parameters. They know nothing of flows."""

from diffeo.nets.any_order import AnyOrder, Ordered
from diffeo.nets.autoencoder import Decoder, Encoder
from diffeo.nets.cnn import CNN
from diffeo.nets.made import MADE
from diffeo.nets.mlp import MLP
from diffeo.nets.reader import Reader
from diffeo.nets.resnet import ResNet
from diffeo.nets.unet import UNet
from diffeo.nets.velocity import Guided, Velocity
from diffeo.nets.wavenet import WaveNet

__all__ = [
    "CNN",
    "MADE",
    "MLP",
    "AnyOrder",
    "Decoder",
    "Encoder",
    "Guided",
    "Ordered",
    "Reader",
    "ResNet",
    "UNet",
    "Velocity",
    "WaveNet",
]
