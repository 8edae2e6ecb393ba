# ruff: noqa: I001  # one statement for each home

from fedlightning._version import __version__ as __version__
from fedlightning.algorithms import (
    APFL as APFL,
    IFCA as IFCA,
    MOON as MOON,
    SCAFFOLD as SCAFFOLD,
    Algorithm as Algorithm,
    ClientHook as ClientHook,
    ClientUpdate as ClientUpdate,
    Composite as Composite,
    Ditto as Ditto,
    FedAdagrad as FedAdagrad,
    FedAdam as FedAdam,
    FedALA as FedALA,
    FedAMP as FedAMP,
    FedAvg as FedAvg,
    FedAvgM as FedAvgM,
    FedBABU as FedBABU,
    FedBN as FedBN,
    FedDF as FedDF,
    FedDyn as FedDyn,
    FedImpro as FedImpro,
    FedMD as FedMD,
    FedNova as FedNova,
    FedPer as FedPer,
    FedPN as FedPN,
    FedProto as FedProto,
    FedProx as FedProx,
    FedRep as FedRep,
    FedRes as FedRes,
    FedRoD as FedRoD,
    FedVI as FedVI,
    FedYogi as FedYogi,
    IterativeDataSmoothing as IterativeDataSmoothing,
    KNNPer as KNNPer,
    LGFedAvg as LGFedAvg,
    LocalMethod as LocalMethod,
    LocalOnly as LocalOnly,
    PerFedAvg as PerFedAvg,
    PerInvFL as PerInvFL,
    PersAFL as PersAFL,
    PFedHR as PFedHR,
    PFedMe as PFedMe,
    ServerData as ServerData,
)
from fedlightning.callbacks import (
    ClientInfluence as ClientInfluence,
    PersonalizationCallback as PersonalizationCallback,
)
from fedlightning.datamodules import FederatedDataModule as FederatedDataModule
from fedlightning.engine.loop import FederatedLoop as FederatedLoop
from fedlightning.errors import FedLightningError as FedLightningError
from fedlightning.federation import (
    Buffered as Buffered,
    Cyclic as Cyclic,
    Federation as Federation,
    Synchronous as Synchronous,
)
from fedlightning.federation.sampling import (
    PoissonSampler as PoissonSampler,
    SeparatedSampler as SeparatedSampler,
)
from fedlightning.models.base import FederatedModule as FederatedModule
from fedlightning.privacy import (
    AdaptiveClipping as AdaptiveClipping,
    ClientDP as ClientDP,
    ExampleDP as ExampleDP,
    PrivateHead as PrivateHead,
    PrivateSGD as PrivateSGD,
)
from fedlightning.results import Run as Run, Study as Study
from fedlightning.storage.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from fedlightning.trainer import FederatedTrainer as FederatedTrainer
