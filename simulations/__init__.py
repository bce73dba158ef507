"""Studies on partitioned public sets: backends, and the commands that need them."""
