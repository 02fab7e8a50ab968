"""What ``train.py`` can be told: all options with their defaults, one dataclass.

    from trainer.config import Budget, Config

    config = Config(dataset="checker", budget="20epochs")
    steps = Budget.of(config).steps(50_000, config.batch_size)

:mod:`trainer.options` reads them, and knows which are wrong. TensorFlow is not imported here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

PROGRAM = "train.py"


class OptionError(ValueError):
    """A mistake in the options, said in words; the program prints them and ends with status 2."""


@dataclass(frozen=True)
class Config:
    """Train a Keras model on batches drawn by loss, or uniformly.

    Options given here go before those of a --config file, and those before the defaults. For example:

        train.py                                            # digits, drawn by loss
        train.py --dataset npz:mine.npz --model my_models:small --output runs/mine
        train.py --dataset checker --compare uniform,importance --seeds 3 --epochs 3
        train.py --output runs/mine --resume                # goes on after an interruption
    """

    sampling: Literal[
        "uniform", "importance", "ranked", "pruning", "selective", "reducible", "presampled", "class-balanced"
    ] = "importance"
    """How batches are drawn: uniform in reshuffled passes, importance by loss with weights that correct for it,
    ranked by the rank of the loss, pruning in passes without a part of the learnt samples, selective in passes of
    the harder ones (biased), reducible by loss over that of a reference, presampled out of a larger uniform batch
    by a forward pass, class-balanced with rare classes more often."""
    dataset: str = "digits"
    """digits, digits-longtail, digits-noisy, digits-pixels, checker, peaks, heavy-rows, heavy-linear, teacher,
    gaussians, clusters, countries, npz:PATH or keras:NAME.
    PATH holds the arrays x, y and perhaps x_test, y_test.
    NAME is mnist, fashion_mnist, cifar10, cifar100 or imdb."""
    model: str = "auto"
    """auto (cnn for images, else mlp), mlp, cnn, lstm, linear or module:function.
    A function of your own gets the data and returns a Keras model."""
    epochs: int = 20
    """Length of the training; an epoch is as many batches as cover the data set once, for every sampling."""
    budget: str | None = None
    """Length in place of --epochs: 20epochs, 3000steps or 120s. For seconds a short trial tells how many steps that
    is, after compiling; each sampling has a trial of its own."""
    batch_size: int = 32
    """Samples a batch."""
    learning_rate: float = 0.003
    """The highest learning rate that is reached."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or gradient descent without momentum."""
    loss: Literal["auto", "focal"] = "auto"
    """What is trained on: auto is cross-entropy for classes and the squared error for quantities; focal is the focal
    loss. What is reported is always that of auto."""
    decay: Literal["cosine", "none"] = "cosine"
    """What becomes of the learning rate: down to 0 at the end of the training, or constant."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises from 0."""
    seed: int = 0
    """Fixes the first weights and all draws. The data are the same for every seed."""
    priority: Literal["loss", "sqrt", "bounded", "clipped", "gradient_norm", "auto"] = "loss"
    """Priority of a sample with loss l: l, sqrt(l) for squared errors, 1-exp(-l) for cross-entropy, l up to the 95 %
    quantile of the recent losses for labels that may be wrong, the norm of the gradient at the last layer, or auto,
    what suits the loss function. Used by importance alone, as is the next."""
    gate: Literal["variance", "speedup", "none"] = "variance"
    """Draws are by priority only while that pays: by the variance of the gradient that batches show, by the criterion
    of Katharopoulos & Fleuret, or none: always."""
    uniform_fraction: float = 0.3
    """Share of the draws that is uniform: 0 by priority alone, 1 uniformly.
    No weight exceeds its inverse. Used by importance, ranked and reducible, as are the four that follow."""
    smoothing: float = 0.5
    """Share of its old priority that a sample keeps at a new loss: 0 none, near 1 almost all."""
    beta: float = 1.0
    """Exponent of the importance weights: 1 corrects for the draws fully, 0 not at all (biased)."""
    scheme: Literal["systematic", "multinomial", "stratified", "without_replacement"] = "systematic"
    """How a batch is drawn from the probabilities."""
    first_pass: float = 0.3
    """Share of the samples that are looked at once before priorities are used; the rest then start with the mean."""
    warmup: int = 0
    """Epochs of uniform draws before priorities are used, beside the first, which is then a whole one."""
    finish: float | None = None
    """Share of the training, at its end, on uniform data, for pruning as well. None: an eighth for pruning, nothing
    for others."""
    refresh: float = 0.0
    """Samples not seen for long whose loss is looked at by a forward pass, for each sample trained on."""
    prune: float = 0.5
    """Share of the samples below the mean loss that pruning leaves out of a pass."""
    selectivity: float = 1.0
    """How much selective prefers the harder samples: 0 not at all, 1 keeps half of the samples, 2 a third."""
    presample: float = 3.0
    """Samples that presampled scores for each that it trains on."""
    balance: float = 0.999
    """How far class-balanced evens out the classes: 0 not at all, 1 fully."""
    reference: str | None = None
    """For reducible: a .npy file of the loss of each sample under another model, or auto: two models like the one
    trained, each on a half of the data, score the half they did not see. That takes as long as a training."""
    feedback_lag: int | None = 4
    """A draw uses exactly the losses of the steps up to so many before it, so that a seed fixes all.
    None: the losses that have arrived, which depends on timing."""
    evaluate_every: int | None = None
    """Steps between evaluations on the test set, for curve.csv.
    None: at the end of each epoch, for history.csv, alone."""
    save_every: str | None = "300s"
    """How often a snapshot of the whole training is saved: like 500steps or 60s. None: at its end, and when it is
    interrupted, alone."""
    resume: bool = False
    """Go on from the newest snapshot in the output folder, with the options of its config.yaml; from the beginning
    where there is none."""
    report: bool = True
    """A page for people, report.html, and what is known of each sample, samples.npz, are written at the end;
    --no-report leaves them out. It needs the extra report."""
    tensorboard: bool = False
    """Whether event files for TensorBoard are written into the folder tensorboard of the output, after every epoch; it
    needs the extra tensorboard."""
    workers: int = 1
    """Processes that train one model together, on Ray: each on a part of the samples, with --batch-size of its own."""
    scorers: int = 0
    """Processes on Ray that score the samples not seen for longest with the newest model, beside a training by
    importance. Losses then count as they arrive (--feedback-lag None, --gate none), and the first pass is whole, or
    none."""
    compare: str | None = None
    """Several samplings, compared over --seeds: uniform,importance,pruning. Options of their own stand behind:
    uniform,importance:priority=sqrt:learning_rate=0.01. The first is what the others are held against."""
    seeds: int = 5
    """Of a comparison: how many, from --seed on."""
    output: Path | None = None
    """Folder for the results. None: runs/DATASET-SAMPLING-SEED, or runs/DATASET-comparison."""
    config: Path | None = None
    """A yaml file of options, as --print-config prints it and every run writes it."""
    print_config: bool = False
    """Print all options as yaml and stop."""
    dry_run: bool = False
    """Build data, sampler and model, print the plan and stop; nothing is written."""
    quiet: bool = False
    """Print nothing but errors."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        plain = re.sub(r"[^\w.-]+", "-", self.dataset).strip("-")
        which = "comparison" if self.compare else f"{self.sampling}-{self.seed}"
        return self.output or Path("runs") / f"{plain}-{which}"


GROUPS = {  # of the options, as --help shows them
    "task": ("dataset", "model", "loss"),
    "training": (
        *("epochs", "budget", "batch_size", "learning_rate", "optimizer", "decay", "warmup_steps", "seed"),
        "evaluate_every",
    ),
    "sampling": (
        *("sampling", "priority", "gate", "uniform_fraction", "smoothing", "beta", "scheme", "first_pass", "warmup"),
        *("finish", "refresh", "feedback_lag", "prune", "selectivity", "presample", "balance", "reference"),
    ),
    "comparison": ("compare", "seeds"),
    "result": ("output", "report", "tensorboard", "save_every", "resume"),
    "process": ("workers", "scorers"),
    "program": ("config", "print_config", "dry_run", "quiet"),
}
NOT_SAVED = (  # what to do, not what to train
    *("config", "print_config", "dry_run", "quiet", "report", "resume", "tensorboard"),
)
KEYS = tuple(field.name for field in dataclasses.fields(Config) if field.name not in NOT_SAVED)
UNITS = {"epochs": "epochs", "epoch": "epochs", "steps": "steps", "step": "steps", "s": "seconds"}


def to_yaml(config: Config) -> str:
    """The options as yaml that ``--config`` takes."""
    values = {key: getattr(config, key) for key in KEYS}
    values["output"] = None if config.output is None else str(config.output)
    return yaml.safe_dump(values, sort_keys=False)


def amount(text: str) -> tuple[float, str] | None:
    """``20epochs`` as 20.0 and ``"epochs"``, a unit's full name; None for what cannot be read, or is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
    unit = UNITS.get(found[2]) if found else None
    count = float(found[1]) if found else 0.0
    return None if unit is None or count <= 0 or (unit != "seconds" and count % 1) else (count, unit)


@dataclass(frozen=True)
class Budget:
    """How long to train: ``count`` of ``unit``, which is ``"epochs"``, ``"steps"`` or ``"seconds"``."""

    count: float
    unit: str

    @classmethod
    def of(cls, config: Config) -> Budget:
        """Of ``--budget``, else of ``--epochs``; ``OptionError`` for one that cannot be read."""
        if config.budget is None:
            return cls(config.epochs, "epochs")
        found = amount(config.budget)
        if found is None:
            raise OptionError(f"--budget must be like 20epochs, 3000steps or 120s, got {config.budget!r}")
        return cls(*found)

    def steps(self, num_samples: int, batch_size: int) -> int | None:
        """How many steps that is; None for seconds, which have to be tried."""
        if self.unit == "seconds":
            return None
        return int(self.count) * (math.ceil(num_samples / batch_size) if self.unit == "epochs" else 1)
