"""Networks: MLPs, velocity fields, the batched critic ensemble and policy heads."""
