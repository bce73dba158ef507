"""The yardsticks: methods against each other in one process, equal first, then fast."""
