"""The constants of the objective (Eq. 15)."""

SMALLEST_N = 500_000  # the paper's N on CIFAR: 10 x 50,000


def auto_l2(weight_decay: float, initial_drop: float, kl_images: float) -> float:
    """The prior strength whose pull on a weight at the start equals `weight_decay`.

    The gradient of l2 (1-p) w^2 / N is 2 l2 (1-p) w / N.
    """
    return weight_decay * kl_images / (2 * (1 - initial_drop))


def objective_images(kl_images: float | None, images: int) -> float:
    """N of Eq. 15: `kl_images`, else 10 x the images fitted, but not below the paper's."""
    return kl_images or max(10 * images, SMALLEST_N)
