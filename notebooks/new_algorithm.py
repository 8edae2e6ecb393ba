# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
# # A new algorithm
#
# Often it is an expression, sometimes a short class. No engine, message or loop is touched.

# %%
from fedlightning import Algorithm, FedAdam, FedBABU, FederatedTrainer, Federation
from fedlightning.algorithms import ClientHook
from fedlightning.datamodules import Digits, Shards
from fedlightning.models import MLP

# %% [markdown]
# Which parts are trained, which are shared: heads averaged, bodies at home, and a composition.

# %%
heads = Algorithm(train="full", share="head")
both = FedBABU() + FedAdam(lr=0.03)
both.name

# %% [markdown]
# How updates are weighted: a client with four times the examples has twice the weight.


# %%
class SquareRootWeights(Algorithm):
    def weight(self, update):
        return update.num_examples**0.5


# %% [markdown]
# What happens in a local step: a hook. This one adds a pull of the weights towards zero to the
# loss of each batch. A hook has settings and no state, so it works with several workers and
# resumes to the same bits.


# %%
class Shrink(ClientHook):
    def __init__(self, strength):
        self.strength = strength

    def on_loss(self, context, batch, loss):
        squares = sum(value.square().sum() for value in context.parameters.values())
        return loss + self.strength * squares


# %%
algorithm = SquareRootWeights(local=[Shrink(1e-3)])
trainer = FederatedTrainer(federation=Federation(algorithm=algorithm, cohort_size=5), max_epochs=3)
trainer.fit(MLP(in_features=64, lr=0.1), datamodule=Digits(num_clients=10, partition=Shards(2)))
float(trainer.callback_metrics["global/acc"])
