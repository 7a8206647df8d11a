"""The constants of the objective (Eq. 15) in the units of a recipe."""

from .registry import Recipe

SMALLEST_N = 500_000  # the paper's N on CIFAR: 10 x 50,000


def auto_l2(recipe: Recipe, kl_images: float) -> float:
    """The prior strength whose pull on a weight at the start equals the recipe's weight decay.

    The gradient of l2 (1-p) w^2 / N is 2 l2 (1-p) w / N.
    """
    return recipe.weight_decay * kl_images / (2 * (1 - recipe.initial_drop))


def objective_images(recipe: Recipe, images: int) -> float:
    """N of Eq. 15: as the recipe has it, else 10 x the images fitted, but not below the paper's."""
    return recipe.kl_images or max(10 * images, SMALLEST_N)
