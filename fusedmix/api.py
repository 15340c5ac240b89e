"""The public names of the package, which `fusedmix/__init__.py` hands out."""

from fusedmix import functional, schedules, transforms
from fusedmix.accuracy import mix_accuracy
from fusedmix.attachment import MixHandle, attach, attached
from fusedmix.attribution import class_activation_map, input_gradient
from fusedmix.backends import BackendError
from fusedmix.bands import SpecMix
from fusedmix.boxes import MixedBoxes, mix_boxes, mix_instances, mix_keypoints
from fusedmix.checkpointing import checkpoint_contexts
from fusedmix.checks import InplaceError
from fusedmix.embeddings import EmbedMix, mix_embeddings
from fusedmix.erased import Cutout, GridMask
from fusedmix.finishing import Erase, Finish
from fusedmix.losses import mix_binary_cross_entropy, mix_cross_entropy
from fusedmix.mixing import finish, mix, mix_, mix_labels
from fusedmix.multi import MultiMix
from fusedmix.pairing import pairing_by_distance
from fusedmix.pasting import RICAP, Mosaic, ResizeMix
from fusedmix.pixel_losses import mix_pixel_cross_entropy, mix_pixel_dice
from fusedmix.plan import MixPlan, SparseTargets, SparseTerms
from fusedmix.puzzle import PuzzleMix
from fusedmix.saliency import fine_grained_saliency, spectral_saliency
from fusedmix.salient import AttentiveCutMix, SaliencyMix, SnapMix
from fusedmix.segmentation import mix_masks, mix_masks_
from fusedmix.sound import BetweenClassMix, sound_levels
from fusedmix.spectral import SpectralMix
from fusedmix.targets import mix_targets
from fusedmix.transforms import *  # noqa: F403
from fusedmix.union import union_labels
from fusedmix.version import __version__

__all__ = [
    "RICAP",
    "AttentiveCutMix",
    "BackendError",
    "BetweenClassMix",
    "Cutout",
    "EmbedMix",
    "Erase",
    "Finish",
    "GridMask",
    "InplaceError",
    "MixHandle",
    "MixPlan",
    "MixedBoxes",
    "Mosaic",
    "MultiMix",
    "PuzzleMix",
    "ResizeMix",
    "SaliencyMix",
    "SnapMix",
    "SparseTargets",
    "SparseTerms",
    "SpecMix",
    "SpectralMix",
    "__version__",
    "attach",
    "attached",
    "checkpoint_contexts",
    "class_activation_map",
    "fine_grained_saliency",
    "finish",
    "functional",
    "input_gradient",
    "mix",
    "mix_",
    "mix_accuracy",
    "mix_binary_cross_entropy",
    "mix_boxes",
    "mix_cross_entropy",
    "mix_embeddings",
    "mix_instances",
    "mix_keypoints",
    "mix_labels",
    "mix_masks",
    "mix_masks_",
    "mix_pixel_cross_entropy",
    "mix_pixel_dice",
    "mix_targets",
    "pairing_by_distance",
    "schedules",
    "sound_levels",
    "spectral_saliency",
    "union_labels",
]
__all__ += transforms.__all__
