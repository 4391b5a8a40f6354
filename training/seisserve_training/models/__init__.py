"""The networks, one a module. ARCHITECTURES has them by the name that a configuration's `network.kind` gives."""

from seisserve_training.models.architecture import Architecture
from seisserve_training.models.onset import ONSET
from seisserve_training.models.phasenet import PHASENET

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: dict[str, Architecture] = {
    "onset": ONSET,
    "phasenet": PHASENET,
}
