"""Bad options: exit code 2, one line that names the key, the value and the way out, nothing left behind."""

import pytest

ROWS = [
    # options that do not exist
    ("--trainer.max_epoch=3", "unknown option trainer.max_epoch. Did you mean 'trainer.max_epochs'?"),
    ("--trainer.max_epoch 3", "unknown option trainer.max_epoch. Did you mean 'trainer.max_epochs'?"),
    ("--data.n_client=3", "data.n_client is no setting of Digits. Did you mean 'num_clients'?"),
    ("--max_epochs=3", "unknown option max_epochs. Did you mean 'trainer.max_epochs'?"),
    ("--lr=1", "unknown option lr. Did you mean 'model.lr'?"),
    ("--batchsize=1", "unknown option batchsize. Did you mean 'data.batch_size'?"),
    ("--ckpt_pat=last", "unknown option ckpt_pat. Did you mean 'ckpt_path'?"),
    ("--xyz", "unknown option xyz."),
    ("extra", "unexpected 'extra': options are written --key=value"),
    ("--model.lr", "--model.lr: expected one argument"),
    ("--print_config=foo", 'Invalid option "foo" for --print_config'),
    # settings of a class
    ("--data.batchsize=4", "data.batchsize is no setting of Digits. Did you mean 'batch_size'?"),
    ("--data.partition.per_clien=3", "data.partition.per_clien is no setting of Shards. Did you mean 'per_client'?"),
    ("--federation.algorithm.mu=0.1", "federation.algorithm.mu is no setting of FedBABU. (its settings: weights, sums)"),
    ("--model.init_args.lrr=1", "model.lrr is no setting of MLP. Did you mean 'lr'?"),
    ("--optimizer=SGD --optimizer.lr=1 --optimizer.momentu=0", "optimizer.momentu is no setting of SGD. Did you mean 'momentum'?"),
    ("--trainer.callbacks=EarlyStopping --trainer.callbacks.monitr=x", "trainer.callbacks.monitr is no setting of EarlyStopping. Did you mean 'monitor'?"),
    ("--trainer.callbacks=EarlyStopping", "trainer.callbacks.monitor is required by EarlyStopping"),
    # classes
    ("--federation.algorithm=FedAgv", "federation.algorithm='FedAgv' is no known Algorithm. Did you mean 'FedAvg'? (known: "),
    ("--federation.algorithm=3", "federation.algorithm='3' is no known Algorithm."),
    ("--data=Digitz", "data='Digitz' is no known FederatedDataModule. Did you mean 'Digits'?"),
    ("--data.partition=Shardz", "data.partition='Shardz' is no known Partition. Did you mean 'Shards'?"),
    ("--model=FedAvg", "model='FedAvg' is no known LightningModule. A class of your own goes by its import path"),
    ("--model.class_path=Conv44", "model='Conv44' is no known LightningModule. Did you mean 'Conv4'?"),
    ("--trainer.callbacks+=EarlyStoping", "trainer.callbacks='EarlyStoping' is no known Callback. Did you mean 'EarlyStopping'?"),
    ("--trainer.logger=WandbLoggr", "trainer.logger='WandbLoggr' is no known Logger. Did you mean 'WandbLogger'?"),
    ("--optimizer=SDG", "optimizer='SDG' is no known Optimizer. Did you mean 'SGD'?"),
    ("--model=nosuch.Net", "model: cannot import nosuch"),
    ("--model.class_path=nosuch.Net", "model: cannot import nosuch"),
    ("--model=fedlightning.models.Conv5", "model: cannot import Conv5 from fedlightning.models"),
    ("--model=collections.OrderedDict", "model='collections.OrderedDict' is no LightningModule."),
    ("--model=os.system", "model: os.system not allowed"),
    ("--data.help=Digitz", "data='Digitz' is no known FederatedDataModule. Did you mean 'Digits'?"),
    # types
    ("--trainer.max_epochs=2.5", "trainer.max_epochs must be an integer or null, got 2.5."),
    ("--model.lr=abc", "model.lr must be a number, got 'abc'."),
    ("--model.hidden=5", "model.hidden must be a list, got 5."),
    ("--data.partition.per_client=x", "data.partition.per_client must be an integer, got 'x'."),
    ("--data.drop_last=maybe", "data.drop_last must be true or false, got 'maybe'."),
    ("--optimizer=Adam --optimizer.lr=abc", "optimizer.lr must be a number, got 'abc'."),
    ("--federation.cohort_size=abc", "federation.cohort_size must be a number, got 'abc'."),
    ("--federation.algorithm=FedAvg --federation.algorithm.weights=unifrm", "federation.algorithm.weights must be one of uniform, examples, got 'unifrm'."),
    ("--trainer.precision=fp99", "trainer.precision must be one of transformer-engine"),
    ("--seed_everything=abc", "seed_everything must be an integer or true or false, got 'abc'."),
    # ranges: what a constructor refuses
    ("--trainer.max_epochs=0", "trainer.max_epochs counts rounds and must be an integer >= 1"),
    ("--federation.cohort_size=0", "federation.cohort_size"),
    ("--federation.cohort_size=.nan", "federation.cohort_size must be a finite number, got nan."),
    ("--federation.local_epochs=0", "federation.local_epochs must be >= 1, got 0."),
    ("--data.batch_size=0", "data.batch_size must be >= 1, got 0"),
    ("--data.num_clients=null", "data.num_clients must be an integer >= 1, got None (null)"),
    ("--data.partition.per_client=0", "data.partition.per_client must be >= 1, got 0"),
    ("--model.lr=-1", "model.lr must be a finite number > 0, got -1.0."),
    ("--model.lr=.inf", "model.lr must be a finite number > 0, got inf."),
    ("--model.momentum=1.5", "model.momentum must be in [0, 1), got 1.5."),
    ("--trainer.callbacks=PersonalizationCallback --trainer.callbacks.epochs=-1", "trainer.callbacks.epochs must be >= 0, got -1."),
    ("--seed_everything=4294967296", "seed_everything must be within 0..4294967295, got 4294967296."),
    ("--seed_everything=-1", "seed_everything must be within 0..4294967295, got -1."),
    # the trainer
    ("--trainer.overfit_batches=1", "trainer.overfit_batches=1 has no federated meaning: clients differ"),
    ("--trainer.sync_batchnorm=true", "trainer.sync_batchnorm=True has no federated meaning"),
    ("--trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5 has no federated meaning"),
    ("--trainer.reload_dataloaders_every_n_epochs=2", "trainer.reload_dataloaders_every_n_epochs=2 has no federated meaning"),
    ("--trainer.barebones=true", "trainer.barebones=True has no federated meaning"),
    ("--trainer.federation=FedAvg", "trainer.federation is no setting: federation stands at the top"),
    ("--trainer.accelerator=nonsense", "trainer: You selected an invalid accelerator name"),
    ("--trainer.max_time=abc", "trainer: `Timer(duration='abc')` is not a valid duration"),
    ("--trainer.logger=CSVLogger --trainer.logger.save_dir=x --trainer.logger.name=../../y", "trainer.logger.name='../../y': path separators are not allowed"),
    # checkpoints
    ("--ckpt_path=best", "ckpt_path='best' is known only while a run lasts"),
    # files
    ("--config", "--config expects a file"),
    ("--config nope.yaml", "config nope.yaml not found"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), ROWS, ids=[row[0][:60] for row in ROWS])
def test_a_bad_option(run, tmp_path, options, message):
    ended = run("B", *options.split(" "))
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")
    assert ended.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["ok.yaml"]


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_no_gpu(run, name):
    ended = run("B", f"--trainer.accelerator={name}")
    assert ended.code == 2
    assert ended.error.startswith(f"error: trainer.accelerator={name}: no GPU")


FILES = [
    ("trainer: {max_epoch: 3}", "unknown option trainer.max_epoch. Did you mean 'trainer.max_epochs'?"),
    ("trainr: {x: 3}", "unknown option trainr.x. Did you mean 'trainer'?"),
    ("federation: {algorthm: FedAvg}", "unknown option federation.algorthm. Did you mean 'federation.algorithm'?"),
    ("federation: FedAvg", "federation must be a mapping of settings, or a file with one, got 'FedAvg'."),
    ("data: {class_path: Digits, init_args: {partition: {class_path: Shards, init_args: {perclient: 2}}}}", "data.partition.perclient is no setting of Shards. Did you mean 'per_client'?"),
    ("data: {class_path: Digits, num_clients: 5}", "data.num_clients belongs under init_args: {class_path: Digits, init_args: {num_clients: ...}}"),
    ("data: {class_path: Digits, num_clients: 5, init_args: {batch_size: 3}}", "data.num_clients belongs under init_args"),
    ("data: {class_path: Digits, init_arg: {batch_size: 3}}", "data.init_arg is unknown. Did you mean 'init_args'?"),
    ("trainer: {logger: [{class_path: CSVLogger, init_args: {save_dir: x, nme: y}}]}", "trainer.logger.nme is no setting of CSVLogger. Did you mean 'name'?"),
    ("trainer: {callbacks: [{class_path: EarlyStopping}]}", "trainer.callbacks.monitor is required by EarlyStopping."),
    ("trainer: {callbacks: [EarlyStoppin]}", "trainer.callbacks='EarlyStoppin' is no known Callback. Did you mean 'EarlyStopping'?"),
    ("trainer: {max_epochs: 2.5}", "trainer.max_epochs must be an integer or null, got 2.5."),
    ("trainer: {overfit_batches: 2}", "trainer.overfit_batches=2 has no federated meaning"),
    ("model: {class_path: Conv4, init_args: {lr: fast}}", "model.lr must be a number, got 'fast'."),
    ("1: 2", "a setting's name must be a word, got 1"),
    ("a: [1", "bad.yaml:2: expected ',' or ']'."),
    ("a: 1\na: 2", "bad.yaml: duplicate key a (lines 1, 2)."),
    ("- a", "bad.yaml: top level must be a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FILES, ids=[row[0][:60] for row in FILES])
def test_a_bad_file(run, write, tmp_path, text, message):
    write("bad.yaml", text)
    ended = run("B", "--config=bad.yaml")
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")
    assert (tmp_path / "bad.yaml").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "ok.yaml"]


def test_what_is_missing(run):
    assert run("fit").error.startswith("error: data and model are required; name a config")
    assert run("fit", "--model=MLP").error.startswith("error: data is required; name a config")


def test_neutral_values_of_flags_without_federated_meaning_are_accepted(run):
    ended = run(
        "B", "--trainer.overfit_batches=0.0", "--trainer.sync_batchnorm=false", "--print_config"
    )
    assert ended.code == 0
    assert "overfit_batches" not in ended.out
    assert "sync_batchnorm" not in ended.out


MINE = """
from fedlightning import FederatedModule
from torch import nn

class Net(FederatedModule):
    def __init__(self, width: int, depth: int = 1):
        super().__init__()
        if depth < 0:
            raise ValueError("depth is negative")
        self.body, self.head = nn.Linear(64, width), nn.Linear(width, 10)

def function(): ...
"""


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (MINE, ["--model=net.Net"], "model.width is required by Net."),
        (MINE, ["--model=net.Nett"], "model: cannot import Nett from net ("),
        (MINE, ["--model=net.function"], "model='net.function' is no LightningModule."),
        (MINE, ["--model=net.Net", "--model.width=2", "--model.depth=-1"],
         "model: Net cannot be built: ValueError: depth is negative"),
        ("class Net(:", ["--model=net.Net"], "model: cannot import net.Net: invalid syntax (net.py, line 1)."),
        ("import nosuchpackage", ["--model=net.Net"], "model: cannot import net.Net: it needs 'nosuchpackage'"),
        ("1 / 0", ["--model=net.Net"], "model: cannot import net.Net: division by zero."),
    ],
)  # fmt: skip
def test_a_class_of_ones_own(run, write, monkeypatch, file, options, message):
    monkeypatch.delitem(__import__("sys").modules, "net", raising=False)
    write("net.py", file)
    ended = run("B", *options)
    assert ended.code == 2
    assert ended.error.startswith(f"error: {message}")
