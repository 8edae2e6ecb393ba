"""The table of idioms: whoever adds a line here has it compared on all counts."""

from __future__ import annotations

from typing import Any

from tests.lightning_parity.idiom import Data, Idiom
from tests.lightning_parity.idioms import (
    batches,
    callbacks,
    compiled,
    hooks,
    hyperparameters,
    layers,
    logs,
    metrics,
    optimization,
    parameters,
    state,
)
from tests.lightning_parity.idioms.base import Net

__all__ = ["IDIOMS", "THEMES"]

# What stays with a client from epoch to epoch is compared in one round of three local epochs.
ONE_ROUND: dict[str, Any] = {"rounds": 1, "epochs": 3}
NO_SANITY: dict[str, Any] = {"flags": {"num_sanity_val_steps": 0}}
F1: dict[str, Any] = {"pooled": ("val/f1", "test/f1"), "show": "val/f1", "personal": True}
F1_LOGGED: dict[str, Any] = {"objects": ("val/f1", "test/f1"), "show": "val/f1", "personal": True}
HAS_FOLDER: dict[str, Any] = {"enable_checkpointing": True}


def wrapped(wrap: Any) -> Data:
    return Data(wrap=wrap)


METRICS = (
    Idiom(
        "object_logged",
        "a metric object logged",
        metrics.ObjectLogged,
        **F1_LOGGED,
        quick_workers=True,
    ),
    Idiom(
        "object_updated_and_logged",
        "`update`, then the object logged",
        metrics.ObjectUpdatedAndLogged,
        **F1_LOGGED,
    ),
    Idiom(
        "object_by_hand",
        "`update`; `compute` and `reset` in `on_*_epoch_end`",
        metrics.ObjectByHand,
        **F1,
        quick_workers=True,
    ),
    Idiom("reset_at_start", "`reset` in `on_*_epoch_start`", metrics.ResetAtStart, **F1),
    Idiom(
        "batch_value_logged",
        "the value of each batch logged",
        metrics.BatchValueLogged,
        show="val/acc",
        personal=True,
    ),
    Idiom(
        "collection_logged",
        "`log_dict` of a `MetricCollection`",
        metrics.CollectionLogged,
        objects=("val/acc", "val/f1", "test/acc", "test/f1"),
        show="val/f1",
        personal=True,
    ),
    Idiom(
        "collection_by_hand",
        "`log_dict` of `collection.compute()`",
        metrics.CollectionByHand,
        pooled=("val/acc", "val/f1", "test/acc", "test/f1"),
        show="val/f1",
        personal=True,
        quick_workers=True,
    ),
    Idiom(
        "best_so_far",
        "`MaxMetric` and `MinMetric` of a logged object, reset in `on_train_start`",
        metrics.BestSoFar,
        objects=("val/f1", "test/f1"),
        pooled=("val/best", "val/lowest"),
        rounds=3,
        show="val/best",
        personal=True,
        quick_workers=True,
    ),
    Idiom(
        "best_logged_as_object",
        "a `MaxMetric` logged",
        metrics.BestLoggedAsObject,
        pooled=("val/f1", "test/f1", "val/best"),
        show="val/best",
    ),
    Idiom(
        "min_max_wrapper",
        "a `MinMaxMetric`",
        metrics.MinMaxWrapper,
        pooled=("val/raw", "val/min", "val/max"),
        show="val/max",
    ),
    Idiom(
        "tracker",
        "a `MetricTracker`",
        metrics.Tracker,
        pooled=("val/f1", "val/best", "val/epochs"),
        show="val/best",
        **NO_SANITY,
    ),
    Idiom("running_window", "a `Running` wrapper", metrics.RunningWindow, show="train/recent"),
    Idiom(
        "classwise",
        "a number for each class",
        metrics.Classwise,
        pooled=("val/acc_a", "val/acc_b", "val/acc_c", "val/count_a", "val/count_b", "val/count_c"),
        show="val/acc_a",
    ),
    Idiom(
        "list_states",
        "metrics that keep all predictions",
        metrics.ListStates,
        pooled=("val/auroc", "val/median"),
        show="val/auroc",
        ignores="No (positive|negative) samples",
    ),
    Idiom("module_dict", "metrics in an `nn.ModuleDict`", metrics.ModuleDictOfMetrics, **F1),
    Idiom("unregistered", "metrics in a plain dictionary", metrics.UnregisteredMetrics, **F1),
    Idiom("made_in_setup", "metrics made in `setup()`", metrics.MetricsMadeInSetup, **F1),
    Idiom(
        "mean_metrics",
        "`MeanMetric` with weights",
        metrics.MeanMetrics,
        pooled=("val/mean", "test/mean"),
        show="val/mean",
        personal=True,
    ),
    Idiom(
        "own_metric",
        "a metric of one's own, reset in `on_validation_end`",
        metrics.OwnMetric,
        pooled=("val/margin", "test/margin"),
        show="val/margin",
        personal=True,
    ),
    Idiom(
        "lists_of_outputs",
        "lists of outputs",
        metrics.ListsOfOutputs,
        pooled=("val/stacked", "test/stacked"),
        show="val/stacked",
        personal=True,
        quick_workers=True,
    ),
    Idiom(
        "gathers",
        "outputs gathered by `self.all_gather`",
        metrics.Gathers,
        ignores="torch.distributed",
        pooled=("val/stacked", "test/stacked"),
        show="val/stacked",
        quick_workers=True,
    ),
    Idiom(
        "lists_without_validation",
        "lists of outputs, no validation data",
        metrics.ListsOfOutputs,
        Data(val_fraction=0.0),
        pooled=("test/stacked",),
        show="train/stacked",
    ),
    Idiom("sklearn", "predictions collected for scikit-learn", metrics.PredictionsForSklearn, **F1),
    Idiom(
        "plain_sums",
        "sums in plain attributes",
        metrics.PlainSums,
        pooled=("val/mean", "val/count", "test/count"),
        show="val/mean",
    ),
    Idiom(
        "only_tested",
        "a test metric by hand, no validation",
        metrics.OnlyTested,
        Data(val_fraction=0.0),
        pooled=("test_acc",),
        show="train/loss",
        personal=True,
    ),
    Idiom(
        "reads_callback_metrics",
        "`trainer.callback_metrics` read in a hook",
        metrics.ReadsWhatItLogged,
        objects=("val/f1", "test/f1"),
        **NO_SANITY,
    ),
    Idiom(
        "read_and_logged",
        "a metric read amid the epoch, logged at its end",
        metrics.ReadAndLogged,
        show="train/f1",
    ),
)

LOGS = (
    Idiom(
        "log_by_default",
        "`self.log` in a step, nothing else said",
        logs.LogsByDefault,
        plain=logs.LogsByEpoch,
        show="train/loss",
        why="a client's steps are averaged over its examples",
    ),
    Idiom(
        "log_step_and_epoch",
        "`on_step=True, on_epoch=True`",
        logs.LogsStepAndEpoch,
        unlike=("train/loss_step", "val/loss_step"),
        show="train/loss_epoch",
    ),
    Idiom("log_flags", "every flag of `self.log`", logs.AllFlags, show="train/weighted"),
    Idiom(
        "reductions",
        "`reduce_fx` max, min, sum, and torch's functions",
        logs.Reductions,
        show="val/max",
    ),
    Idiom(
        "own_reduction",
        "`reduce_fx` of one's own",
        logs.OwnReduction,
        refused="reduce_fx|reduction",
        in_plain_too=True,
        why="plain Lightning refuses it in the first step",
    ),
    Idiom("sync_dist", "`sync_dist=True`", logs.Synchronised, quick_workers=True),
    Idiom(
        "log_dict",
        "`log_dict`, and a step that returns a dictionary",
        logs.Dictionaries,
        show="train/acc",
    ),
    Idiom(
        "kinds_of_numbers",
        "floats, NumPy numbers, tensors of several types",
        logs.AllKindsOfNumbers,
        show="val/numpy",
    ),
    Idiom(
        "log_in_hooks",
        "`self.log` in hooks around the step",
        logs.LogsInHooks,
        pooled=("val/start", "val/end"),
        show="train/norm",
    ),
    Idiom("log_in_forward", "`self.log` in `forward`", logs.LogsInForward, show="val/scale"),
    Idiom(
        "log_now_and_then",
        "a value that only some batches have",
        logs.LogsNowAndThen,
        show="train/odd",
    ),
    Idiom("no_index", "steps without `batch_idx`", logs.NoIndex),
)

BATCHES = (
    Idiom("dictionary", "a dictionary", batches.Reads, wrapped(batches.as_dict)),
    Idiom(
        "text_first",
        "a dictionary with the text first",
        batches.Reads,
        wrapped(batches.as_dict_text_first),
    ),
    Idiom("user_dict", "a `UserDict`", batches.Reads, wrapped(batches.as_user_dict)),
    Idiom(
        "user_dict_text_first",
        "a `UserDict` with the text first",
        batches.Reads,
        wrapped(batches.as_user_dict_text_first),
    ),
    Idiom("dataclass", "a dataclass", batches.ReadsAttributes, wrapped(batches.as_record)),
    Idiom("named_tuple", "a named tuple", batches.ReadsAttributes, wrapped(batches.as_named_tuple)),
    Idiom(
        "nested",
        "dictionaries and lists within each other",
        batches.ReadsNested,
        wrapped(batches.as_nested),
    ),
    Idiom(
        "text_and_labels",
        "a list that begins with texts",
        batches.ReadsList,
        wrapped(batches.as_text_and_labels),
    ),
    Idiom("one_tensor", "one tensor", batches.AutoEncoder, wrapped(batches.as_inputs_alone)),
    Idiom(
        "dataset_of_dictionaries",
        "a dataset of dictionaries",
        batches.Tokens,
        Data(examples=batches.tokens, dataset=batches.Sentences),
    ),
    Idiom(
        "real_targets",
        "real targets",
        batches.Regression,
        Data(examples=batches.line),
        show="val/mae",
    ),
)

OPTIMIZATION = (
    Idiom("momentum", "momentum and weight decay", optimization.Momentum, **ONE_ROUND),
    Idiom(
        "adamw", "AdamW with parameter groups", optimization.AdamW, **ONE_ROUND, quick_workers=True
    ),
    Idiom("closure", "LBFGS", optimization.Closure, **ONE_ROUND),
    Idiom("epoch_schedule", "a schedule by epoch", optimization.EpochSchedule, rounds=3),
    Idiom("lambda_schedule", "a `LambdaLR`", optimization.WarmUpByLambda, rounds=3),
    Idiom("step_schedule", "a schedule by step", optimization.StepSchedule, **ONE_ROUND),
    Idiom(
        "every_other_step",
        "a schedule by every second step",
        optimization.EveryOtherStep,
        **ONE_ROUND,
    ),
    Idiom(
        "plateau",
        "`ReduceLROnPlateau` on the validation loss",
        optimization.Plateau,
        rounds=4,
        three=False,
    ),
    Idiom(
        "train_plateau",
        "`ReduceLROnPlateau` on the training loss",
        optimization.TrainPlateau,
        rounds=4,
        three=False,
    ),
    Idiom(
        "one_cycle",
        "a cycle of `trainer.estimated_stepping_batches` steps",
        optimization.OneCycle,
        **ONE_ROUND,
        refused="estimated_stepping_batches",
        may_be_refused=True,
        three=False,
    ),
    Idiom(
        "own_schedule_step",
        "`lr_scheduler_step` overridden",
        optimization.OwnScheduleStep,
        rounds=3,
        three=False,
    ),
    Idiom("warm_up", "a warm-up in `optimizer_step`", optimization.WarmUp, **ONE_ROUND),
    Idiom("own_backward", "`backward`, zeroing and clipping overridden", optimization.OwnBackward),
    Idiom("gradient_hooks", "gradients changed in `on_after_backward`", optimization.GradientHooks),
    Idiom("accumulation", "`accumulate_grad_batches`", Net, flags={"accumulate_grad_batches": 2}),
    Idiom(
        "accumulation_by_step",
        "`accumulate_grad_batches` and a schedule by step",
        optimization.StepSchedule,
        flags={"accumulate_grad_batches": 2},
        **ONE_ROUND,
    ),
    Idiom("clip_norm", "gradients clipped by norm", Net, flags={"gradient_clip_val": 0.1}),
    Idiom(
        "clip_value",
        "gradients clipped by value",
        Net,
        flags={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    ),
    Idiom("limit_train_batches", "`limit_train_batches`", Net, flags={"limit_train_batches": 2}),
    Idiom(
        "validation_now_and_then",
        "`check_val_every_n_epoch`",
        Net,
        rounds=4,
        flags={"check_val_every_n_epoch": 2},
        three=False,
        tests_in_fit=False,
    ),
    Idiom("mixed_precision", '`precision="bf16-mixed"`', Net, flags={"precision": "bf16-mixed"}),
    Idiom("double_precision", '`precision="64-true"`', Net, flags={"precision": "64-true"}),
    Idiom(
        "detect_anomaly",
        "`detect_anomaly`, and a profiler",
        Net,
        flags={"detect_anomaly": True, "profiler": "simple"},
    ),
    Idiom("manual", "manual optimization with clipping", optimization.Manual),
    Idiom(
        "manual_last_batch",
        "manual optimization until `trainer.is_last_batch`",
        optimization.ManualUntilLast,
        **ONE_ROUND,
        quick_workers=True,
    ),
    Idiom("two_optimizers", "two optimizers", optimization.TwoOptimizers, **ONE_ROUND),
    Idiom(
        "skips_some",
        "a step that returns `None` for some batches",
        optimization.SkipsSome,
        ignores="returned `None`",
    ),
    Idiom(
        "returns_nothing",
        "a step that never returns its loss",
        optimization.ReturnsNothing,
        warns="returned `None`|no loss",
        show="train/loss",
    ),
    Idiom(
        "ends_epoch_early",
        "`on_train_batch_start` returns -1",
        optimization.EndsEpochEarly,
        show="train/loss",
    ),
    Idiom(
        "by_epoch",
        "a loss and frozen layers by `self.current_epoch`",
        optimization.ByEpoch,
        rounds=3,
    ),
    Idiom("frozen_part", "frozen and unused layers", optimization.FrozenPart, personal=True),
    Idiom(
        "asks_the_trainer",
        "what the trainer says within a step",
        optimization.AsksTheTrainer,
        **NO_SANITY,
    ),
    Idiom("curriculum", "`trainer.num_training_batches` in the loss", optimization.Curriculum),
)

HOOKS = (
    Idiom("hook_order", "the module's hooks in order", hooks.HookOrder, rounds=1, **NO_SANITY),
    Idiom(
        "validation_batches",
        "hooks around evaluation batches",
        hooks.ValidationBatches,
        **NO_SANITY,
    ),
    Idiom(
        "batch_transfer",
        "hooks around the transfer of a batch",
        hooks.BatchTransfer,
        ignores="You have overridden `on_",
        personal=True,
    ),
    Idiom(
        "forward_hooks",
        "torch's forward hooks",
        hooks.ForwardHooks,
        pooled=("val/activity",),
        show="val/activity",
    ),
    Idiom("mode_by_hook", "`on_validation_model_eval` overridden", hooks.ModeByHook),
    Idiom("configure_callbacks", "`configure_callbacks`", hooks.ConfiguresCallbacks),
    Idiom(
        "saves_more",
        "`on_save_checkpoint` and `on_load_checkpoint`",
        hooks.SavesMore,
        resumes=True,
        plain_resumes=True,
        three=False,
    ),
)

STATE = (
    Idiom(
        "hidden_state",
        "a hidden state from batch to batch",
        state.HiddenState,
        **ONE_ROUND,
        quick_workers=True,
    ),
    Idiom(
        "hidden_state_of_the_epoch",
        "a hidden state, forgotten with the epoch",
        state.HiddenStateOfTheEpoch,
    ),
    Idiom("teacher", "a second network that follows the first", state.Teacher),
    Idiom("queue", "a queue with a pointer in buffers", state.Queue, **ONE_ROUND),
    Idiom("counter", "a counter in an attribute", state.Counter, **ONE_ROUND, personal=True),
    Idiom("replay", "past batches in a deque", state.Replay, **ONE_ROUND),
    Idiom(
        "tensor_attribute",
        "a tensor that is no buffer",
        state.TensorAttribute,
        **ONE_ROUND,
        apart=True,
    ),
    Idiom("not_saved", "a buffer that is not saved", state.NotSaved, **ONE_ROUND, apart=True),
    Idiom(
        "memory_of_evaluation",
        "a cache that evaluation fills",
        state.MemoryOfEvaluation,
        **NO_SANITY,
    ),
    Idiom("class_statistics", "counts in an integer buffer", state.ClassStatistics, **ONE_ROUND),
)

PARAMETERS = (
    Idiom("tied", "tied weights", parameters.Tied, personal=True),
    Idiom("shared_layer", "a layer under two names", parameters.SharedLayer),
    Idiom("complex", "complex weights", parameters.Complex, quick_workers=True),
    Idiom(
        "sparse_gradients",
        "sparse gradients",
        parameters.SparseGradients,
        Data(examples=batches.tokens),
    ),
    Idiom("sparse_buffer", "a sparse buffer", parameters.SparseBuffer),
    Idiom("non_contiguous", "weights that are not contiguous", parameters.NonContiguous),
    Idiom("half", "a layer in bfloat16", parameters.Half),
    Idiom("double", "a module in float64", parameters.Double),
    Idiom("odd_shapes", "scalars, empty tensors, lists of parameters", parameters.OddShapes),
    Idiom("parametrised", "weight norm and spectral norm", parameters.Parametrised),
    Idiom("channels_last", "channels last", parameters.ChannelsLast),
    Idiom("groups", "a parameter group for each layer", parameters.Groups),
)

LAYERS = (
    Idiom("layers_in_setup", "a layer made in `setup()`", layers.MadeInSetup, personal=True),
    Idiom(
        "layers_in_setup_resumed",
        "a layer made in `setup()`, resumed",
        layers.MadeInSetup,
        resumes=True,
        plain_resumes=True,
        three=False,
    ),
    Idiom(
        "layers_in_configure_model",
        "a network made in `configure_model()`",
        layers.MadeInConfigureModel,
    ),
    Idiom(
        "configure_model_resumed",
        "a network made in `configure_model()`, resumed",
        layers.MadeInConfigureModel,
        resumes=True,
        plain_resumes=True,
        three=False,
    ),
    Idiom("lazy", "lazy layers, shown an example in `configure_model()`", layers.LazyLayers),
    Idiom(
        "lazy_to_the_end",
        "lazy layers that nobody has shown an example",
        layers.LazyToTheEnd,
        **NO_SANITY,
        refused="lazy|uninitiali[sz]ed|configure_model",
        may_be_refused=True,
        three=False,
    ),
    Idiom("batch_norm", "BatchNorm", layers.BatchNorm, personal=True),
    Idiom("frozen_in_eval", "a frozen part in eval mode", layers.FrozenInEval, personal=True),
    Idiom(
        "frozen_by_hook", "a part put into eval mode by a hook", layers.FrozenByHook, personal=True
    ),
    Idiom(
        "frozen_by_train",
        "a part kept in eval mode by `train()`",
        layers.FrozenByTrain,
        personal=True,
    ),
    Idiom(
        "act_norm", "a layer set up from its first training batch", layers.WithActNorm, **ONE_ROUND
    ),
    Idiom(
        "flagged_act_norm",
        "the same, with a flag in a buffer",
        layers.WithFlaggedActNorm,
        **NO_SANITY,
        three=False,
    ),
    Idiom(
        "moved_by_evaluation",
        "a buffer that evaluation changes",
        layers.MovedByEvaluation,
        one=False,
    ),
)

AVERAGING = (
    Idiom(
        "ema",
        "`EMAWeightAveraging`",
        Net,
        Data(batch_size=32),
        callbacks=callbacks.ema,
        rounds=3,
        three=False,
        tests_in_fit=False,
    ),
    Idiom(
        "mean_of_epochs",
        "`WeightAveraging` by epoch",
        Net,
        callbacks=callbacks.every_epoch,
        rounds=3,
        three=False,
        tests_in_fit=False,
    ),
)

CALLBACKS = (
    *(AVERAGING if callbacks.HAS_AVERAGING else ()),
    Idiom(
        "swa",
        "`StochasticWeightAveraging`",
        Net,
        callbacks=callbacks.swa,
        rounds=4,
        three=False,
        tests_in_fit=False,
    ),
    Idiom(
        "backbone_finetuning",
        "`BackboneFinetuning`",
        callbacks.Backbone,
        callbacks=callbacks.backbone,
        rounds=3,
        three=False,
    ),
    Idiom(
        "backbone_finetuning_resumed",
        "`BackboneFinetuning`, resumed",
        callbacks.Backbone,
        callbacks=callbacks.backbone,
        rounds=3,
        resumes=True,
        plain_resumes=True,
        three=False,
    ),
    Idiom(
        "accumulation_scheduler",
        "`GradientAccumulationScheduler`",
        Net,
        callbacks=callbacks.accumulation,
        rounds=3,
        three=False,
    ),
    Idiom(
        "device_stats",
        "`DeviceStatsMonitor`",
        Net,
        callbacks=callbacks.device_stats,
        flags={"accelerator": callbacks.SteadyCPU(), "devices": 1, "logger": True},
    ),
    Idiom(
        "rich_progress_bar",
        "`RichProgressBar`",
        Net,
        callbacks=callbacks.rich,
        flags={"enable_progress_bar": True},
    ),
    Idiom(
        "early_stopping",
        "`EarlyStopping`",
        Net,
        callbacks=callbacks.early_stopping,
        rounds=6,
        three=False,
    ),
    Idiom(
        "stopping_on_training",
        "`EarlyStopping` on `train/loss_epoch`",
        logs.LogsStepAndEpoch,
        unlike=("train/loss_step", "val/loss_step"),
        callbacks=callbacks.stopping_on_training,
        rounds=6,
        three=False,
    ),
    Idiom(
        "best_checkpoint",
        "`ModelCheckpoint` on `train/loss_epoch`",
        logs.LogsStepAndEpoch,
        unlike=("train/loss_step", "val/loss_step"),
        callbacks=callbacks.best_checkpoint,
        flags=HAS_FOLDER,
        three=False,
    ),
    Idiom(
        "rate_monitor",
        "`LearningRateMonitor`",
        callbacks.Scheduled,
        callbacks=callbacks.rate_monitor,
        flags={"logger": True},
        rounds=3,
        three=False,
    ),
    Idiom(
        "summary",
        "`ModelSummary` with an example input",
        callbacks.HasExample,
        callbacks=callbacks.summary,
        flags={"enable_model_summary": True},
        three=False,
    ),
    Idiom("timer", "`Timer`", Net, callbacks=callbacks.timer, three=False),
    Idiom(
        "lambda_callback",
        "`LambdaCallback` that logs",
        Net,
        callbacks=callbacks.lambdas,
        show="train/from_callback",
        **NO_SANITY,
    ),
    Idiom(
        "rate_finder",
        "`LearningRateFinder`",
        callbacks.HasRate,
        callbacks=callbacks.rate_finder,
        refused="LearningRateFinder",
        why="it trains outside of rounds",
    ),
    Idiom(
        "tuner_rate",
        "`Tuner.lr_find`",
        callbacks.HasRate,
        start=callbacks.find_rate,
        refused="Tuner|LearningRateFinder|lr_find",
        why="it trains outside of rounds",
    ),
    Idiom(
        "size_finder",
        "`BatchSizeFinder`",
        callbacks.HasRate,
        callbacks=callbacks.size_finder,
        refused="BatchSizeFinder",
        why="it trains outside of rounds",
    ),
    Idiom(
        "tuner_size",
        "`Tuner.scale_batch_size`",
        callbacks.HasRate,
        start=callbacks.find_size,
        refused="Tuner|BatchSizeFinder|scale_batch_size",
        why="it trains outside of rounds",
    ),
    Idiom(
        "pruning",
        "`ModelPruning`",
        Net,
        callbacks=callbacks.pruning,
        refused="ModelPruning",
        why="it renames the keys of the state",
    ),
)

HYPERPARAMETERS = tuple(
    Idiom(
        f"hparams_{name.split(maxsplit=1)[1].replace(' ', '_').lower()}",
        f"{name} among the hyperparameters, resumed",
        make,
        resumes=True,
        three=False,
        ignores="Attribute 'activation' is an instance",
    )
    for name, make in hyperparameters.KINDS.items()
)

COMPILED = (
    Idiom("compiled_network", "`torch.compile` of a network", compiled.CompiledNetwork),
    Idiom(
        "compiled_in_place", "`self.net.compile()` in `configure_model()`", compiled.CompiledInPlace
    ),
    Idiom(
        "compiled_module",
        "`torch.compile` of the module",
        compiled.compiled_module,
        Data(val_fraction=0.0),
        show="train/loss",
    ),
)

THEMES: dict[str, tuple[Idiom, ...]] = {
    "Metrics": METRICS,
    "Logging": LOGS,
    "Batches": BATCHES,
    "Optimization": OPTIMIZATION,
    "Hooks": HOOKS,
    "State": STATE,
    "Parameters": PARAMETERS,
    "Layers": LAYERS,
    "Callbacks": CALLBACKS,
    "Hyperparameters": HYPERPARAMETERS,
    "Compilation": COMPILED,
}
"""All idioms by theme, as the documentation shows them."""

IDIOMS: tuple[Idiom, ...] = tuple(idiom for theme in THEMES.values() for idiom in theme)
