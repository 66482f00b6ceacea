from lightning_distill import losses as losses
from lightning_distill.api import Results as Results
from lightning_distill.api import Sweep as Sweep
from lightning_distill.api import compose as compose
from lightning_distill.api import run as run
from lightning_distill.api import sweep as sweep
from lightning_distill.errors import ConfigError as ConfigError
from lightning_distill.experiment.cached_predictions import CachedPredictions as CachedPredictions
from lightning_distill.losses.objective import Objective as Objective
from lightning_distill.training.student import StudentModule as StudentModule
from lightning_distill.training.teacher import TeacherModule as TeacherModule

__version__: str
