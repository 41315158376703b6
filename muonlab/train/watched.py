"""What is watched in one run: its probes, made as its `Watch` asks for them."""

from torch import nn

from muonlab.errors import UsageError
from muonlab.optim.engine import Engine
from muonlab.records import RunSpec
from muonlab.records.watch import NOISE, Watch
from muonlab.tasks import catalog as tasks
from muonlab.tasks.base import Task
from muonlab.train.batches import samples_of
from muonlab.train.checkpoint import restore_rng, rng_state
from muonlab.train.feature_probes import FeatureProbe, RankProbe
from muonlab.train.linear_probe import linear_probe
from muonlab.train.noise import NoiseProbe
from muonlab.train.probes import Probes
from muonlab.train.ranks import Alone

__all__ = ["Watched"]


class Watched:
    """The probes of a run, and what they have measured; making them draws nothing that the run would.

    Raises   UsageError over several ranks, where a probe would see a part of the model or of the batch
    """

    def __init__(
        self, watch: Watch, spec: RunSpec, task: Task, model: nn.Module, optimizer: Engine, ranks: Alone
    ) -> None:
        self.asked = {name: getattr(watch, name) for name in ("noise_cost", "rank_cost", "features", "probe")}
        if ranks.world_size > 1 and any(self.asked.values()):
            what = "gradient noise is" if watch.noise_cost else "features of hidden states are"
            hint = "leave --noise out under torchrun" if watch.noise_cost else "train without torchrun"
            raise UsageError(f"{what} measured in one process: {hint}")
        before = rng_state(spec.device)
        tokens, per_token = spec.batch_tokens, tasks.flops_per_token(task, model)
        self.noise: NoiseProbe | None = None
        self.features: FeatureProbe | None = None
        self.layers: RankProbe | None = None
        if watch.noise_cost:
            unit = task.tokens_per_sample
            self.noise = NoiseProbe(optimizer, samples_of(spec, task), unit, per_token, watch.noise_cost)
        if watch.features:
            self.features = FeatureProbe(task, model)
        if watch.rank_cost:
            self.layers = RankProbe(task, model, tokens, per_token, watch.rank_cost, spec.num_steps)
        self.probes = Probes((*(NOISE if self.noise else ()), *(self.layers.names if self.layers else ())))
        if watch.probe:
            self.probes.note(0, linear_probe(task, model))
        restore_rng(before)
