# %% [markdown]
# # From digits to a smaller network, in Python
#
# Cells as in a notebook; `python examples/digits.py` runs them one after the other, in a minute.

# %%
import torch

import pgnas_cli
from pgnas_cli.data import load_data
from pgnas_cli.gates import make_concrete_
from pgnas_cli.ranking import held_out_evaluator, interval, rank
from pgnas_cli.registry.lookup import load_backbone
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sizes import Target, count, parameter_count
from pgnas_cli.training import fit, score

SEED, CPU = 0, torch.device("cpu")
torch.set_num_threads(1)

# %% [markdown]
# The embedded digits, cut into images to fit on, held-out images to choose on, and a test split.

# %%
data = load_data("digits", seed=SEED)
print(len(data.fit), "to fit on,", len(data.held_out), "held out,", len(data.test), "to report on")

# %% [markdown]
# A network with two branches per block, and a gate on every input channel.

# %%
backbone = load_backbone("multibranch-tiny", classes=10, channels=1, size=8, seed=SEED)
network = make_concrete_(backbone.network, backbone.input_shape, groups="channel")
print(len(pgnas_cli.drop_probabilities(network)), "drop probabilities")

# %% [markdown]
# One training run learns weights and drop probabilities; the aim is half of the parameters.

# %%
for epoch in fit(network, data, backbone.recipe, seed=SEED, target=Target("params", 0.5)):
    if epoch.epoch % 5 == 0:
        print(
            f"epoch {epoch.epoch}: loss {epoch.loss:.3f},"
            f" mean candidate {100 * epoch.hard_error:.1f} % at {100 * epoch.expected_share:.0f} %"
        )

# %% [markdown]
# Two hundred candidates, each with the weights it will keep, ranked on the held-out images.

# %%
network.eval()
keep = draw_candidates(pgnas_cli.drop_probabilities(network), network, 200, SEED)
ranking = rank(held_out_evaluator(network, keep, data, CPU), count(network, keep))
best = int(ranking.order[0])
print("best candidate:", best, "with", int(ranking.errors[best]), "errors of", ranking.images)

# %% [markdown]
# The best one, cut out of the tensors: the same logits, fewer parameters.

# %%
smaller = pgnas_cli.slim(network, keep[best])
images = data.preprocessing.normalised(data.held_out.pixels[:32])
with torch.no_grad(), pgnas_cli.masked(network, keep[best]):
    difference = (network(images) - smaller(images)).abs().max()
print(f"largest difference of logits: {float(difference):.1e}")
print(sum(p.numel() for p in smaller.parameters()), "of", parameter_count(network), "parameters")

# %% [markdown]
# Only now the test split.

# %%
found = score(smaller, data.test, data.preprocessing, device=CPU, workers=0)
low, high = interval(found.errors, found.images)
print(f"test error {100 * found.error:.1f} % ({100 * low:.1f}-{100 * high:.1f})")
