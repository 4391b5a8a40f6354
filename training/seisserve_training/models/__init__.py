"""The networks, one a module. ARCHITECTURES has them by the name that a configuration's `network.kind` gives."""

from seisserve_training.models.architecture import Architecture
from seisserve_training.models.basicphaseae import BASICPHASEAE
from seisserve_training.models.cred import CRED
from seisserve_training.models.deepdenoiser import DEEPDENOISER
from seisserve_training.models.deepphasepick import DEEPPHASEPICK
from seisserve_training.models.dncnn import DNCNN
from seisserve_training.models.eqtransformer import EQTRANSFORMER
from seisserve_training.models.gpd import GPD
from seisserve_training.models.onset import ONSET
from seisserve_training.models.phasenet import PHASENET
from seisserve_training.models.recovery import RECOVERY

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: dict[str, Architecture] = {
    "basicphaseae": BASICPHASEAE,
    "deepdenoiser": DEEPDENOISER,
    "dncnn": DNCNN,
    "cred": CRED,
    "deepphasepick": DEEPPHASEPICK,
    "eqtransformer": EQTRANSFORMER,
    "gpd": GPD,
    "onset": ONSET,
    "phasenet": PHASENET,
    "recovery": RECOVERY,
}
