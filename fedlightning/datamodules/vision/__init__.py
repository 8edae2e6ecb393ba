"""Image datasets: the embedded digits, MNIST and its kin, CIFAR."""
