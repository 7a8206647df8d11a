# %% [markdown]
# # From digits to a smaller network, in Python
#
# Cells as in a notebook; `python examples/digits.py` runs them one after the other, in a minute.

# %%
import tempfile
from pathlib import Path

import torch

import pgnas_cli

torch.set_num_threads(1)
run = Path(tempfile.mkdtemp()) / "digits"

# %% [markdown]
# One training run learns weights and drop probabilities; the target is half of the parameters.
# `options` are those of `pgnas fit`. Everything is kept in the run directory.

# %%
summary = pgnas_cli.fit(run, data="digits", target_params="50%", groups="channel", epochs=15)
print(f"mean candidate: {100 * summary.held_out_error:.1f} % held-out error")

# %% [markdown]
# Two hundred candidates, each with the weights it will keep, ranked on the held-out images.

# %%
(candidates,) = pgnas_cli.sample(run, 200)
(board,) = pgnas_cli.rank(run, top=5)
print(
    "best candidate:", board.best, "with", int(board.errors[board.best]), "errors of", board.images
)

# %% [markdown]
# The best one, cut out of the tensors and verified: the same logits, fewer parameters.

# %%
info = pgnas_cli.export(run / "best.safetensors", run)
network = pgnas_cli.load(run / "best.safetensors")
print(sum(p.numel() for p in network.parameters()), "of", info.whole_params, "parameters")

# %% [markdown]
# Only now the test split.

# %%
(found,) = pgnas_cli.evaluate(run / "best.safetensors")
print(f"test error {100 * found.error:.1f} % ({found.errors} of {found.images})")
